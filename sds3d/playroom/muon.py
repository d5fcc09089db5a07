"""Muon (Jordan et al. 2024): momentum whose matrices are replaced by the nearest orthogonal ones, by Newton-Schulz."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM, DECAY = 0.95, 0.01


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix [m, n] with the same singular vectors and singular values between 0.7 and 1.2, in bf16.

    Five steps of the quintic iteration with Jordan's coefficients, which trade exactness for speed.
    """
    x = matrix.bfloat16()
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), wide, beta=3.4445)
    return wide if x.shape[0] <= x.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions; a convolution's kernel [out, in, h, w] is a matrix [out, in h w].

    PyTorch's own takes matrices alone, and most of a UNet is kernels. An update is as large as Adam's (0.2 root mean
    square times the rate: Liu et al. 2025, arXiv 2502.16982).
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                matrix = torch.lerp(parameter.grad, momentum, MOMENTUM).flatten(1)
                update = orthogonal(matrix).to(parameter.dtype).reshape(parameter.shape)
                parameter.mul_(1 - group["lr"] * DECAY)
                parameter.add_(update, alpha=-0.2 * group["lr"] * max(matrix.shape) ** 0.5)
