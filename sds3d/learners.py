"""Networks that are trained during a run, and their optimiser: AdamW (Loshchilov, Hutter 2019, arXiv 1711.05101)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .core import Learner

MOMENTS = {"steps": "step", "first": "exp_avg", "second": "exp_avg_sq"}  # our names and those of torch's AdamW


class AdamLearner(Learner):
    """A learner under AdamW; a subclass makes its parameters and buffers, then calls `optimise`.

    Its state is every weight and buffer by name, and for each weight that was ever updated its moments and its number
    of updates, so that a resumed run goes on with the same bits.
    """

    optimiser: torch.optim.AdamW

    def optimise(self, lr: float, decay: float) -> None:
        """Make the optimiser. lr: the rate. decay: the share of lr by which a weight shrinks at each update."""
        if not 0 < lr < math.inf:
            raise ValueError(f"The learning rate of a trained network must be a finite number above 0, given {lr}.")
        self.optimiser = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=decay)

    def fit(self, loss: Tensor) -> float:
        """One update down the gradient of a scalar loss; returns its value.

        Weights that the loss does not depend on stay as they are. Raises ArithmeticError for a loss that is not finite,
        before any weight has moved.
        """
        number = float(loss.detach())
        if not math.isfinite(number):
            raise ArithmeticError(f"The loss of the {type(self).__name__} is {number}; lower its learning rate.")
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return number

    def state(self) -> dict[str, Tensor]:
        """Copies of "weight.*" and "buffer.*", and of "steps.*", "first.*", "second.*" where there was an update."""
        tensors = {f"weight.{name}": weight for name, weight in self.named_parameters()}
        tensors |= {f"buffer.{name}": buffer for name, buffer in self.named_buffers()}
        for name, weight in self.named_parameters():
            moments = self.optimiser.state.get(weight, {})
            tensors |= {f"{ours}.{name}": moments[theirs] for ours, theirs in MOMENTS.items() if moments}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. Raises ValueError, before anything changes, for what is missing or does not fit."""
        places = {f"weight.{name}": weight for name, weight in self.named_parameters()}
        places |= {f"buffer.{name}": buffer for name, buffer in self.named_buffers()}
        for name, place in places.items():
            if name not in tensors or tensors[name].shape != place.shape:
                given = f"one of {list(tensors[name].shape)}" if name in tensors else "none"
                raise ValueError(f'A saved {type(self).__name__} needs "{name}" {list(place.shape)}; there is {given}.')
        for name, place in places.items():
            place.copy_(tensors[name])
        self.optimiser.state.clear()
        for name, weight in self.named_parameters():
            moments = {
                theirs: tensors[f"{ours}.{name}"] for ours, theirs in MOMENTS.items() if f"{ours}.{name}" in tensors
            }
            if moments:  # The number of updates stays on the CPU, the moments lie beside their weight.
                self.optimiser.state[weight] = {
                    theirs: moment.clone() if theirs == "step" else moment.to(weight, copy=True)
                    for theirs, moment in moments.items()
                }
