"""What share of a step is spent outside the prior, the renderer and the optimiser? The bound is 5 %.

python benchmarks/step_share.py [--prior NAME|DIR] [--steps 60] [--out FILE]

It runs the default recipe with the recorder and the progress line, as the command does, and times every call of the
prior, the renderer, the backward pass (which goes through encoder and renderer alone) and the representation's update.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sds3d.core import Prior
from sds3d.generate import Request, begin, make, open_priors, plan
from sds3d.playroom.bench import save
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import Gaussians
from sds3d.watchers import ProgressLine

PARTS = ((Splats, "__call__", "renderer"), (torch.Tensor, "backward", "backward"), (Gaussians, "update", "optimiser"))


class Timed:
    """A prior that adds the time of its calls to a clock."""

    def __init__(self, prior: Prior, clock: dict[str, float]) -> None:
        self._prior, self._clock = prior, clock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._prior, name)
        return timed(found, "prior", self._clock) if callable(found) else found


def timed(function: Callable, part: str, clock: dict[str, float]) -> Callable:
    def call(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **named)
        clock[part] += time.perf_counter() - start
        return result

    return call


@contextmanager
def patched(owner: type, name: str, part: str, clock: dict[str, float]) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, timed(before, part, clock))
    try:
        yield
    finally:
        setattr(owner, name, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step-share.json"))
    given = parser.parse_args()
    clock: dict[str, float] = defaultdict(float)
    ends: list[float] = []
    inside: list[float] = []

    def watch(*_: Any) -> None:
        ends.append(time.perf_counter())
        inside.append(sum(clock.values()))

    with tempfile.TemporaryDirectory() as name:
        request = Request("a red cube", None, given.prior, steps=given.steps, out=Path(name) / "run", device="cpu")
        job = plan(replace(request, overrides=("exports=[]",)))
        priors: dict[str, Any] = {name: Timed(prior, clock) for name, prior in open_priors(job).items()}
        folder = begin(job)
        with ExitStack() as stack:
            for owner, method, part in PARTS:
                stack.enter_context(patched(owner, method, part, clock))
            make(job, priors, folder, (stack.enter_context(ProgressLine(job.recipe)), watch))
        folder.close()
    # The first steps warm caches up; from the tenth on every step counts.
    total, counted = ends[-1] - ends[9], inside[-1] - inside[9]
    figures = {
        "steps": len(ends) - 10,
        "ms_per_step": round(1e3 * total / (len(ends) - 10), 2),
        "share_outside": round(1 - counted / total, 4),
        **{f"ms_{part}": round(1e3 * seconds / len(ends), 2) for part, seconds in clock.items()},
    }
    results = {"command": "python benchmarks/step_share.py", "figures": figures, "threads": torch.get_num_threads()}
    save("step-share", results, given.out)


if __name__ == "__main__":
    main()
