"""Networks under training: their averages, their optimisers, and the loop that logs, saves and exports them."""

from __future__ import annotations

import argparse
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .data import Store
from .muon import Muon

MUON_RATE = 6.0  # Muon's rate over AdamW's
NO_MATRIX = "embeddings|positional|conv_in|conv_out"  # tables, and what touches pictures or latents: AdamW's
LOG_EVERY, SAVE_EVERY = 100, 500  # steps


class Fit(ABC):
    """Named networks, their averages, two optimisers and a step: all that a checkpoint holds.

    Every random number of a step follows from the seed and the step's number, so a resumed fit ends in the same bits.
    """

    def __init__(self, networks: Mapping[str, nn.Module], cache: Any, args: argparse.Namespace) -> None:
        self.args, self.cache, self.device = args, cache, torch.device(args.device)
        self.networks: dict[str, Any] = dict(networks)
        for net in self.networks.values():
            net.to(self.device, memory_format=torch.channels_last)
        trained = nn.ModuleList(self.networks.values())
        self.average: Any = deepcopy(trained).requires_grad_(False)
        self.parameters = list(trained.parameters())
        named = list(trained.named_parameters())
        matrices = {name: p for name, p in named if p.ndim > 1 and not re.search(NO_MATRIX, name)}
        rest = [p for name, p in named if name not in matrices]
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices.values(), lr=args.lr * MUON_RATE),
            torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.rates = [optimiser.param_groups[0]["lr"] for optimiser in self.optimisers]
        self.step, self.seconds = 0, 0.0

    @abstractmethod
    def losses(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each row [N] of a fresh batch, and detached columns [n] whose means are logged by name."""

    @abstractmethod
    def judge(self) -> dict[str, float]:
        """Measures worth their time every `SAVE_EVERY` steps."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the averaged weights in the layout of diffusers."""

    def train_step(self) -> dict[str, Tensor]:
        """One update; returns the columns of the log."""
        rng = np.random.default_rng((self.args.seed, self.step))
        share = rate_share(self.step, self.args)
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * share
            optimiser.zero_grad(set_to_none=True)
        losses, columns = self.losses(rng)
        losses.mean().backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if not norm.isfinite():
            raise RuntimeError(f"The gradient is not finite at step {self.step}; the last checkpoint is kept.")
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        decay = min(self.args.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, parameter in zip(self.average.parameters(), self.parameters, strict=True):
                mean.lerp_(parameter, 1 - decay)
        return columns

    def state(self) -> dict[str, Any]:
        return {
            **{name: net.state_dict() for name, net in self.networks.items()},
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        for name, net in self.networks.items():
            net.load_state_dict(state[name])
        self.average.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]


def rate_share(step: int, args: argparse.Namespace) -> float:
    """A short warm-up, then 1, and a fall to zero over the last part, so that `steps` may be moved later."""
    warm = min(1.0, (step + 1) / 200)
    fall = (args.steps - step) / (args.steps * args.decay_share)
    return warm * min(1.0, max(fall, 0.0))


def run(fit: Fit, checkpoint: Path, out: Path) -> None:
    """Train to the end or `--until`, from the checkpoint where there is one; what is written at last opens at `out`.

    The log lies beside the checkpoint, one JSON object a line.
    """
    if checkpoint.exists():
        fit.load(torch.load(checkpoint, map_location=fit.device, weights_only=True))
    until = min(fit.args.until or fit.args.steps, fit.args.steps)
    seen: list[dict[str, Tensor]] = []
    last = time.monotonic()
    while fit.step < until:
        seen.append(fit.train_step())
        if fit.step % LOG_EVERY == 0 or fit.step == until:
            now = time.monotonic()
            fit.seconds, last = fit.seconds + now - last, now
            line: dict[str, float] = {"step": fit.step, "seconds": round(fit.seconds)}
            for name in seen[0]:
                line[name] = round(torch.cat([columns[name] for columns in seen]).mean().item(), 5)
            seen.clear()
            if fit.step % SAVE_EVERY == 0:
                line |= {name: round(number, 4) for name, number in fit.judge().items()}
            with checkpoint.with_suffix(".jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
        if fit.step % SAVE_EVERY == 0 or fit.step == until:
            fresh = checkpoint.with_suffix(".tmp")
            torch.save(fit.state(), fresh)
            fresh.replace(checkpoint)
            fit.export(out)


def parser(module: str, about: str | None, steps: int, lr: float) -> argparse.ArgumentParser:
    """The options that every training has, with its own defaults."""
    options = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    options.add_argument(
        "--work", type=Path, required=True, help="folder for pictures, checkpoints and exported weights"
    )
    options.add_argument("--steps", type=int, default=steps, help="length of the whole schedule")
    options.add_argument("--until", type=int, help="stop earlier, at this step")
    options.add_argument("--scenes", type=int, default=12000, help="groups of four views to render")
    options.add_argument("--rows", type=int, default=24, help="pictures a step, a multiple of four")
    options.add_argument("--lr", type=float, default=lr, help="AdamW's; matrices and kernels get MUON_RATE times it")
    options.add_argument("--decay-share", type=float, default=0.5, help="part of the schedule in which the rate falls")
    options.add_argument("--ema", type=float, default=0.9985)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    return options


def fill(store: Store, whole: bool = False) -> None:
    """Render pictures where there are none, or the `whole` of them."""
    if whole or store.ready == 0:
        total = len(store.array)
        store.fill(lambda done: print(f"rendered {done}/{total}", flush=True) if done % 500 == 0 else None)
