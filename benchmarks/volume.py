"""How fast and how exact the CPU volume renderer is: `python benchmarks/volume.py` writes `results/volume.json`.

Scenes: "solid" is a ball of radius 0.6 with waves on it, opaque within two cells, as a fitted field is; "start" is the
soft ball that a run begins with, where no ray ends early. A time is one forward and backward pass through autograd,
from the grid to its gradient, with jitter, depth, normals and background, 4 views of 64 pixels, one thread. The C
kernel and PyTorch's packed samples take turns pass by pass, so that other programs on the machine slow both alike, and
what is compared is the ratio. The error is that of the kernel against the same renderer in float64, early stop off.
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from splats import BACKGROUND, cameras, commit, hardware, upstream

from sds3d.cameras import rays
from sds3d.core import RenderOutput, Step
from sds3d.renderers import kernels, volume_torch
from sds3d.renderers.volume import Volume
from sds3d.renderers.volume_torch import DIAGONAL, March
from sds3d.representations.field import EMPTY_RAW, Ball, Field, points

HERE = Path(__file__).parent
RUNS, PX = 21, 64
TARGET_MS = 23.0  # "solid" at 64 points a side


def solid(resolution: int) -> Field:
    """Opaque inside, empty outside."""
    grid = torch.zeros(resolution, resolution, resolution, 4)
    place = points(resolution, grid)
    waves = torch.sin(9 * place).prod(dim=-1)
    grid[..., 0] = (2 * resolution * (0.6 - place.norm(dim=-1) + 0.05 * waves)).clamp(EMPTY_RAW, 6)
    grid[..., 1:] = 2 * torch.sin(7 * place)
    return Field(grid)


def start(resolution: int) -> Field:
    rep = Ball(resolution=resolution)(None, Step(0))
    assert isinstance(rep, Field)
    return rep


def step(rep: Field, draw: Volume, above: torch.Tensor) -> RenderOutput:
    """One forward and backward pass."""
    rep.zero_grad(set_to_none=True)
    out = draw(rep, cameras(PX), BACKGROUND, Step(0))
    out.rgb.backward(above.to(out.rgb))
    return out


def in_turns(rep: Field) -> dict[str, float]:
    """CPU milliseconds of a pass with each backend, median and best, and the median ratio of neighbouring passes."""
    times: dict[str, list[float]] = {"c": [], "torch": []}
    above = upstream(PX)
    for run in range(RUNS + 2):
        for kernel, found in times.items():
            os.environ["SDS3D_KERNEL"] = kernel
            began = time.process_time()
            step(rep, Volume(), above)
            if run >= 2:
                found.append(1e3 * (time.process_time() - began))
    del os.environ["SDS3D_KERNEL"]
    ratios = [slow / fast for fast, slow in zip(times["c"], times["torch"], strict=True)]
    found = {f"{kernel}, median ms": statistics.median(ms) for kernel, ms in times.items()}
    found |= {f"{kernel}, best ms": min(ms) for kernel, ms in times.items()}
    return {name: round(number, 2) for name, number in {**found, "torch over c": statistics.median(ratios)}.items()}


def live_samples(rep: Field) -> int:
    """Samples that add to the four pictures, without jitter."""
    origins, directions = rays(cameras(PX).to(rep.grid))
    half, draw = torch.full_like(directions[..., 0], 0.5), Volume()
    size = DIAGONAL / draw.samples
    march = March(rep.grid, rep.occupied, origins[:, 0, 0], directions, half, size, draw.stop)
    return len(volume_torch.live_samples(march)[0])


def errors(rep: Field) -> dict[str, float]:
    """Relative L2 distance of the pictures and of the gradient to float64."""
    above, draw = upstream(PX), Volume(stop=0.0)
    double = copy.deepcopy(rep).double()
    found, true = step(rep, draw, above), step(double, draw, above)
    pairs = {name: (getattr(found, name), getattr(true, name)) for name in ("rgb", "alpha", "depth", "normal")}
    pairs["gradient"] = (rep.grid.grad, double.grid.grad)
    return {
        name: float(f"{float(((a.double() - b).norm() / b.norm()).detach()):.1e}") for name, (a, b) in pairs.items()
    }


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    chosen = kernels.backend()
    if chosen.library is None:
        raise SystemExit(f"There is no C kernel to measure: {chosen.why}.")
    scenes = {"solid 64": solid(64), "start 32": start(32), "start 64": start(64), "solid 128": solid(128)}
    rows = {}
    for name, rep in scenes.items():
        rows[name] = {
            "occupied": round(float(rep.occupied.float().mean()), 3),
            "live_samples": live_samples(rep),
            **in_turns(rep),
        }
        print(name, rows[name], file=sys.stderr)
    result = {
        "what": "CPU volumes, 4 views of 64 px, 96 samples along the cube's diagonal, forward + backward, one thread",
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "command": "python benchmarks/volume.py",
        "hardware": hardware() | {"load_average": os.getloadavg()},
        "target_ms": TARGET_MS,
        "scenes": rows,
        "relative_error_to_float64": errors(scenes["solid 64"]),
    }
    (HERE / "results" / "volume.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
