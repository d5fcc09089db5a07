"""How fast and how exact the CPU splats are: `python benchmarks/splats.py` writes `results/splats.json`.

Scenes: "mid" is a ball of Gaussians with opacities from 0.1 to 0.9 and deep overlap, well over
200 layers at a pixel; in "init" all opacities are 0.1, so that nothing dies early. A time is one forward and backward
pass through autograd, from the parameters to their gradients, with projection, sort, normals and background, 4 views.
It is given as wall time and as the process's own CPU time, which other programs on the machine disturb less; with one
thread on a free core the two agree. Work is 28 + 48 floating-point operations per live pair of pixel and Gaussian.

What a user would pick instead on the CPU is PyTorch's own path, which is our fallback and stands beside it: gsplat
imports there, but its `rasterization` needs CUDA, as the other rasterisers of Gaussians do.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sds3d.cameras import look_at, orbit
from sds3d.core import Background, Cameras, RenderOutput
from sds3d.renderers import reference, splats, splats_torch
from sds3d.renderers.kernels import loader
from sds3d.renderers.splats import Splats
from sds3d.renderers.splats_torch import Shapes
from sds3d.representations.gaussians import Gaussians

HERE = Path(__file__).parent
VIEWS = 4
FLOP_PER_PAIR = 28 + 48
BACKGROUND = Background(torch.full((VIEWS, 3), 0.5))
TARGETS = {"mid 2000 at 64 px, ms": 8.0, "mid 10000 at 64 px, ms": 16.0, "init 2000 at 128 px, share of peak": 0.08}


def scene(count: int, opacity: float | None) -> Gaussians:
    """A ball of `count` Gaussians; smaller where there are more, so that the layers at a pixel stay alike."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    means = 0.8 * torch.nn.functional.normalize(normal(count, 5), dim=-1)[:, :3]
    scales = 0.0615 * (2000 / count) ** 0.5 * torch.exp(0.4 * normal(count, 3))
    quats, colours = normal(count, 4), normal(count, 3)
    opacities = 0.1 + 0.8 * torch.rand(count, generator=generator)
    if opacity is not None:
        opacities.fill_(opacity)
    return Gaussians(means, scales.log(), quats, opacities.logit(), colours)


def cameras(size: int) -> Cameras:
    """Four views, exactly orthonormal: the twin inverts the matrix where the renderers transpose it."""
    cams = orbit([10.0, 100.0, 190.0, 280.0], 15.0, size)
    return dataclasses.replace(cams, c2w=look_at(cams.position.double()), K=cams.K.double())


def upstream(size: int) -> torch.Tensor:
    return torch.randn(VIEWS, size, size, 3, generator=torch.Generator().manual_seed(1))


def step(rep: Gaussians, cams: Cameras, above: torch.Tensor, draw: Callable[..., RenderOutput]) -> RenderOutput:
    """One forward and backward pass."""
    rep.zero_grad(set_to_none=True)
    out = draw(rep, cams, BACKGROUND)
    out.rgb.backward(above.to(out.rgb))
    return out


def milliseconds(rep: Gaussians, size: int, runs: int) -> dict[str, float]:
    """Wall time (median, best, worst) and CPU time (median) of `runs` passes, after two to warm up."""
    cams, above = cameras(size), upstream(size)
    wall, cpu = [], []
    for run in range(runs + 2):
        start, own = time.perf_counter(), time.process_time()
        step(rep, cams, above, Splats())
        if run >= 2:
            wall.append(1e3 * (time.perf_counter() - start))
            cpu.append(1e3 * (time.process_time() - own))
    found = {"median": statistics.median(wall), "best": min(wall), "worst": max(wall), "cpu": statistics.median(cpu)}
    return {name: round(value, 2) for name, value in found.items()}


@torch.no_grad()
def live_pairs(rep: Gaussians, size: int) -> tuple[int, int]:
    """Pairs that add to the picture, and the most layers at a pixel, dead ones included."""
    cams = cameras(size).to(rep.means)
    shapes = Shapes(rep.means, rep.scales, rep.quats, rep.opacities, rep.rgb)
    pixels, cov, z = splats_torch.project(shapes, cams)
    corner, extent = splats_torch.rectangles(pixels, cov, z, rep.opacities, size, size)
    pixel, element = splats_torch._pairs(pixels, cov, z, rep.opacities, corner, extent, cams)
    alpha = splats_torch._alpha(pixel, element, pixels, cov, rep.opacities, cams).clamp(max=splats_torch.MAX_ALPHA)
    live = splats_torch._before(alpha, pixel) > splats_torch.MIN_TRANSMITTANCE
    return int(live.sum()), int(pixel.bincount().max())


def peak_gflops() -> float:
    """Best of many short tries of the multiply-add loop, compiled as the kernel is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peak.so"
        subprocess.run([*loader.compiler(), *loader.FLAGS, "-march=native", "-o", path, HERE / "peak.c"], check=True)
        library = ctypes.CDLL(str(path))
    library.peak.restype = ctypes.c_double
    sink, best = ctypes.c_float(), 0.0
    for _ in range(300):
        start = time.process_time()
        done = library.peak(ctypes.c_int64(200_000), ctypes.c_float(0.5), ctypes.byref(sink))
        best = max(best, done / (time.process_time() - start) / 1e9)
    return best


def errors(rep: Gaussians, size: int) -> dict[str, float]:
    """Relative L2 distance of the picture and of every gradient to the dense float64 twin."""
    cams, above = cameras(size), upstream(size)
    found = step(rep, cams, above, Splats())
    double = copy.deepcopy(rep).double()
    true = step(double, cams, above, lambda *inputs: reference.splats(*inputs, normals=False))
    pairs = {name: (getattr(found, name), getattr(true, name)) for name in ("rgb", "alpha", "depth")}
    for (name, p), q in zip(rep.named_parameters(), double.parameters(), strict=True):
        pairs[f"gradient of {name}"] = (p.grad, q.grad)
    pairs["gradient of means2d"] = (found.screen.means2d.grad, true.screen.means2d.grad)
    return {name: float(((a.double() - b).norm() / b.norm()).detach()) for name, (a, b) in pairs.items()}


def hardware() -> dict[str, object]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    compiler = subprocess.run([*loader.compiler(), "--version"], capture_output=True, text=True, check=True)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "compiler": compiler.stdout.splitlines()[0],
    }


def commit() -> str:
    words = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})  # one core for what is measured with one thread
    torch.set_num_threads(1)
    chosen = splats.backend(torch.zeros(1))
    if chosen.library is None:
        raise SystemExit(f"There is no C kernel to measure: {chosen.why}.")
    peak = peak_gflops()
    cases = [("mid", n, size, None) for size in (64, 128) for n in (2000, 10_000)]
    cases += [("init", 2000, 128, 0.1), ("init", 10_000, 128, 0.1)]
    rows = []
    for name, count, size, opacity in cases:
        rep = scene(count, opacity)
        pairs, layers = live_pairs(rep, size)
        time_ms = milliseconds(rep, size, 41)
        share = pairs * FLOP_PER_PAIR / (time_ms["cpu"] * 1e-3) / (peak * 1e9)
        rows.append(
            {"scene": name, "count": count, "px": size, "live_pairs": pairs, "most_layers": layers}
            | {"ms": time_ms, "share_of_peak": round(share, 4)}
        )
        print(rows[-1], file=sys.stderr)
    os.environ["SDS3D_KERNEL"] = "torch"
    fallback = {n: milliseconds(scene(n, None), 64, 5) for n in (2000, 10_000)}
    del os.environ["SDS3D_KERNEL"]
    accuracy = {n: errors(scene(n, None), 64) for n in (2000, 10_000)}
    two = None
    if len(allowed) >= 2:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(2)
        two = {n: milliseconds(scene(n, None), 64, 41) for n in (2000, 10_000)}
    one = {row["count"]: row["ms"] for row in rows if (row["scene"], row["px"]) == ("mid", 64)}
    share = next(r["share_of_peak"] for r in rows if (r["scene"], r["count"], r["px"]) == ("init", 2000, 128))
    measured = dict(zip(TARGETS, (one[2000]["cpu"], one[10_000]["cpu"], share), strict=True))
    result = {
        "what": "CPU splats, 4 views, forward + backward through autograd with projection, sort, normals, background",
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "command": "python benchmarks/splats.py",
        "hardware": hardware() | {"kernel_lanes": chosen.library.splats_lanes(), "load_average": os.getloadavg()},
        "targets": TARGETS,
        "measured": measured,
        "peak_gflops_one_core": round(peak, 1),
        "one_thread": rows,
        "pytorch_fallback_ms": fallback,
        "times_faster_than_fallback": {n: round(ms["cpu"] / one[n]["cpu"], 1) for n, ms in fallback.items()},
        "two_threads_ms": two,
        "times_faster_with_two_threads": two
        and {n: round(one[n]["median"] / ms["median"], 2) for n, ms in two.items()},
        "relative_error_to_float64": {n: {k: float(f"{v:.1e}") for k, v in e.items()} for n, e in accuracy.items()},
    }
    target = HERE / "results" / "splats.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
