"""How fast and how exact the CPU volume renderer is: `python benchmarks/volume.py` writes `results/volume.json`.

Scenes: "solid" is a ball of radius 0.6 with waves on it, opaque within two cells, as a fitted field is; "start" is the
soft ball that a run begins with, where no ray ends early. A time is one forward and backward pass through autograd,
from the grid to its gradient, with jitter, depth, normals and background, 4 views of 64 pixels, one thread. The C
kernel and PyTorch's packed samples take turns pass by pass, so that other programs on the machine slow both alike, and
what is compared is the ratio. The error is that of the kernel against the same renderer in float64, early stop off.

What a user would pick instead on the CPU is nerfacc (`pip install nerfacc`; left out where it is missing) over
`grid_sample`: of nerfacc only the functions over [rays, samples] run without CUDA, so the samples are ours, and those
in empty cells are skipped by hand. It is spared the normals, and must draw the same picture.
"""

from __future__ import annotations

import copy
import datetime
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from splats import BACKGROUND, cameras, commit, hardware, upstream

from sds3d.cameras import rays
from sds3d.core import RenderOutput, Step
from sds3d.renderers import kernels, volume, volume_torch
from sds3d.renderers.splats import OUTSIDE
from sds3d.renderers.volume import Volume
from sds3d.renderers.volume_torch import DIAGONAL, March, Marched
from sds3d.representations.field import DENSITY_SCALE, EMPTY_RAW, Ball, Field, points

HERE = Path(__file__).parent
RUNS, NERFACC_RUNS, PX = 21, 5, 64
SAME = 1e-4  # relative L2 of nerfacc's picture to ours, which ends a ray at this transmittance
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


def by_nerfacc(march: March) -> Marched:
    """The same samples of the same rays, as a table of rays and samples with holes, without normals."""
    import nerfacc

    length = march.directions.norm(dim=-1, keepdim=True)
    unit = (march.directions / length).reshape(-1, 3)
    origins = march.origins[:, None, None].expand_as(march.directions).reshape(-1, 3)
    middle = -(origins * unit).sum(dim=-1, keepdim=True)
    half = (DIAGONAL**2 / 4 - (origins + middle * unit).square().sum(dim=-1, keepdim=True)).clamp_min(0).sqrt()
    offset = march.offset.reshape(-1, 1)
    first = ((middle - half) / march.step - offset).floor().clamp_min(0)
    t = (first + torch.arange(math.ceil(DIAGONAL / march.step) + 2) + offset) * march.step  # [rays, samples]

    place = origins[:, None] + t[..., None] * unit[:, None]
    cell = (place + 1) * ((march.grid.shape[0] - 1) / 2)
    x, y, z = cell.long().clamp(0, march.grid.shape[0] - 2).unbind(-1)
    seen = (place.abs() <= 1).all(dim=-1) & march.occupied[x, y, z]

    def field(*_: object) -> tuple[torch.Tensor, torch.Tensor]:
        voxels, where = march.grid.permute(3, 0, 1, 2)[None], place[seen].flip(-1)[None, None, None]
        raw = torch.nn.functional.grid_sample(voxels, where, padding_mode="border", align_corners=True)[0, :, 0, 0]
        density = DENSITY_SCALE * torch.nn.functional.softplus(raw[0])
        colour = torch.zeros_like(place).index_put((seen,), raw[1:].sigmoid().T)
        return colour, torch.zeros_like(t).index_put((seen,), density)

    starts, ends = t - march.step / 2, t + march.step / 2
    colour, alpha, depth, _ = nerfacc.rendering(starts, ends, rgb_sigma_fn=field)
    shape, zeros = march.directions.shape[:3], torch.zeros_like(march.directions)
    depth = depth * alpha / length.reshape(-1, 1)  # nerfacc's depth is a mean along the ray; ours a sum of camera z
    return Marched(colour.view(*shape, 3), alpha.view(*shape, 1), depth.view(*shape, 1), zeros, zeros[..., :1])


def nerfacc_instead(rep: Field) -> dict[str, float]:
    """CPU milliseconds of a pass by nerfacc, in turns with ours, and how far its picture and gradient are from ours."""
    above, times = upstream(PX), {"c": [], "nerfacc": []}
    drawn, gradients = {}, {}
    for run in range(NERFACC_RUNS + 1):
        for name, draw in (("c", volume.draw), ("nerfacc", by_nerfacc)):
            began = time.process_time()
            with mock.patch.object(volume, "draw", draw):
                drawn[name] = step(rep, Volume(), above)
            if run >= 1:
                times[name].append(1e3 * (time.process_time() - began))
            gradients[name] = rep.grid.grad.clone()
    ours, theirs = drawn["c"], drawn["nerfacc"]
    clear = ours.alpha > 2 * OUTSIDE  # at OUTSIDE itself rounding decides whether a pixel has a depth
    pairs = {name: (getattr(theirs, name), getattr(ours, name)) for name in ("rgb", "alpha")}
    pairs["depth"] = (theirs.depth[clear], ours.depth[clear])
    pairs["gradient"] = (gradients["nerfacc"], gradients["c"])
    apart = {f"{name}, relative": float(((a - b).norm() / b.norm()).detach()) for name, (a, b) in pairs.items()}
    if max(apart[f"{name}, relative"] for name in ("rgb", "alpha", "depth")) > SAME:
        raise SystemExit(f"nerfacc draws another picture: {apart}.")
    ratio = statistics.median(slow / fast for fast, slow in zip(*times.values(), strict=True))
    found = {"nerfacc, median ms": round(statistics.median(times["nerfacc"]), 1), "nerfacc over c": round(ratio, 1)}
    return found | {name: float(f"{value:.1e}") for name, value in apart.items()}


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
        if importlib.util.find_spec("nerfacc") is None:
            print("nerfacc is not measured: pip install nerfacc", file=sys.stderr)
        else:
            rows[name]["instead"] = nerfacc_instead(rep)
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
