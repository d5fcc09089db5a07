"""Adam in place, for representations that grow: their moments are edited together with their parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETAS = (0.9, 0.99)  # shorter than Adam's habit, because a run has a few hundred steps
EPS = 1e-15  # as 3DGS: a gradient may be tiny and still be all that there is


@torch.no_grad()
def adam_(parameter: Tensor, first: Tensor, second: Tensor, steps: int, rate: float | Tensor) -> None:
    """One step (Kingma and Ba 2015) along parameter.grad, which is then dropped; without one nothing happens.

    first, second: the moments, of the parameter's shape; or of the second one number [1] for the whole parameter, the
    largest square, so that steps keep the gradient's shape (Nicolet, Jacobson, Jakob 2021). steps: how many were made,
    this one included. rate: a number, or a tensor that broadcasts to the parameter.
    """
    gradient = parameter.grad
    if gradient is None:
        return
    first_beta, second_beta = BETAS
    first.lerp_(gradient, 1 - first_beta)
    if second.shape == gradient.shape:
        second.mul_(second_beta).addcmul_(gradient, gradient, value=1 - second_beta)
    else:
        second.lerp_(gradient.square().amax().reshape(1), 1 - second_beta)
    spread = second.sqrt().div_(math.sqrt(1 - second_beta**steps)).add_(EPS)
    if isinstance(rate, Tensor):
        parameter.addcdiv_(first * rate, spread, value=-1 / (1 - first_beta**steps))
    else:
        parameter.addcdiv_(first, spread, value=-rate / (1 - first_beta**steps))
    parameter.grad = None
