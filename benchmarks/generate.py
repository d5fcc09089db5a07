"""How long does the main job take, from a cold process to its files? And how much memory, and when is there a picture?

python benchmarks/generate.py [--runs 3] [--prompt TEXT] [--out FILE]

Bounds on two cores: 60 s, 2 GB, the first preview within 15 s, `--help` within 0.5 s, and one forward of the prior with
8 rows within 100 ms. To a textured GLB, one run each: 120 s of `gaussians-mesh`, 180 s of the other recipes. The first
start on a machine compiles the renderer and Python's bytecode and is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from sds3d.cameras import orbit
from sds3d.core import Step
from sds3d.diffusion import diffuse
from sds3d.playroom.bench import save
from sds3d.priors.catalogue import open_prior

COMMAND = [sys.executable, "-m", "sds3d"]
TEXTURED = ("gaussians-mesh", "nerf-mesh", "geometry-texture")


def generate(prompt: str, recipe: str = "gaussians", asset: str = "asset.ply") -> dict[str, float]:
    """One cold run: seconds to its end and to its first preview, and its peak memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        start = time.monotonic()
        process = subprocess.Popen(
            [*COMMAND, "generate", prompt, "--recipe", recipe, "--out", str(out), "--quiet"], stdout=subprocess.DEVNULL
        )
        preview = None
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if preview is None and (out / "preview.png").exists():
                preview = time.monotonic() - start
            if pid:
                break
            time.sleep(0.05)
        seconds = time.monotonic() - start
        if status or preview is None or not (out / asset).exists() or not (out / "turntable.mp4").exists():
            raise RuntimeError(f"The run of {prompt!r} did not leave all its files.")
    return {"seconds": seconds, "first_preview_s": preview, "peak_memory_mb": usage.ru_maxrss / 1024}


def forward_ms(rows: int = 8, repeats: int = 30) -> float:
    """The median time of one prediction of the embedded prior."""
    prior = open_prior("playroom")
    cameras = orbit([0.0, 90.0, 180.0, 270.0], 15.0, prior.size)
    asked = {name: prior.condition(prior.text([text]), cameras) for name, text in (("a", "a red cube"), ("b", ""))}
    x = diffuse(prior, prior.encode(torch.ones(rows // 2, prior.size, prior.size, 3)), Step(0), (0.5, 0.5))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        prior.predict(x.ask(asked, "a", "b"))
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def help_seconds() -> float:
    start = time.monotonic()
    subprocess.run([*COMMAND, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--prompt", default="a red cube on top of a blue cylinder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/generate.json"))
    given = parser.parse_args()
    generate(given.prompt)
    runs = [generate(given.prompt) for _ in range(given.runs)]
    figures = {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}
    figures["help_s"] = round(statistics.median(help_seconds() for _ in range(5)), 3)
    figures |= {f"{name}_s": round(generate(given.prompt, name, "asset.glb")["seconds"], 1) for name in TEXTURED}
    figures["forward_8_rows_ms"] = round(forward_ms(), 1)
    rows = [{key: round(value, 2) for key, value in run.items()} for run in runs]
    save("generate", {"command": "python benchmarks/generate.py", "figures": figures, "rows": rows}, given.out)


if __name__ == "__main__":
    main()
