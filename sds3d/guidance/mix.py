"""How named noise predictions become one: classifier-free guidance and the x0 rescale.

| symbol     | variable       | equation                                                             |
|------------|----------------|----------------------------------------------------------------------|
| s          | Cfg.scale      | E_cfg = E_base + s (E_cond - E_base) (Ho, Salimans 2022)             |
| phi        | Rescale.phi    | X' = (phi f + 1 - phi) X(E_mix)                                      |
| f          | factor         | (std X(E_cond) + 1e-8) / (std X(E_mix) + 1e-8), over one joint group |

Guidance scales have this one meaning everywhere. Code bases that write E_cond + s' (E_cond - E_base) mean s' = s - 1.
The rescale is that of Lin et al. 2024 (arXiv 2305.08891), in MVDream's form (Shi et al. 2023, arXiv 2308.16512).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..core import Condition, Mix, Noised
from ..diffusion import eps_from_x0, x0_from_eps

BASES = ("uncond", "negative")


@dataclass(frozen=True)
class Cfg:
    """Classifier-free guidance, E_base + scale (E_cond - E_base).

    scale: 0 gives the base, 1 the conditional prediction. base: the condition "uncond" (the empty prompt) or
    "negative" (a negative prompt). Raises ValueError for a negative scale or another base.
    """

    scale: float = 4.0
    base: str = "uncond"

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise ValueError(f"scale must be a finite number of at least 0, given {self.scale}.")
        if self.base not in BASES:
            raise ValueError(f'base must be one of {", ".join(BASES)}, given "{self.base}".')

    @property
    def names(self) -> tuple[str, ...]:
        return ("cond", self.base)

    def __call__(self, eps: Mapping[str, Tensor], conditions: Mapping[str, Condition], x: Noised, group: int) -> Tensor:
        """The guided prediction [N, c, *s]."""
        base = eps[self.base]
        return base + self.scale * (eps["cond"] - base)


@dataclass(frozen=True)
class Rescale:
    """Another mix whose clean latent is pulled back to the spread that the conditional prediction has.

    phi: 0 changes nothing, 1 takes the whole spread of the conditional prediction. The spread is one standard
    deviation over all views, channels and pixels of a group. On plain backgrounds it makes haze: it pulls the
    background of the target toward mid-grey, so it is off unless a recipe asks for it.
    """

    mix: Mix = Cfg(10.0)
    phi: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.phi <= 1:
            raise ValueError(f"phi must lie in [0, 1], given {self.phi}.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("cond", *self.mix.names)))

    def __call__(self, eps: Mapping[str, Tensor], conditions: Mapping[str, Condition], x: Noised, group: int) -> Tensor:
        """The rescaled prediction [N, c, *s]; N must be a multiple of `group`."""
        mixed = x0_from_eps(x.z_t, self.mix(eps, conditions, x, group), x.alpha, x.sigma)
        plain = x0_from_eps(x.z_t, eps["cond"], x.alpha, x.sigma)
        factor = (spread(plain, group) + 1e-8) / (spread(mixed, group) + 1e-8)
        return eps_from_x0(x.z_t, (self.phi * factor + 1 - self.phi) * mixed, x.alpha, x.sigma)


def spread(z: Tensor, group: int) -> Tensor:
    """The unbiased standard deviation of each joint group of rows, repeated for its rows: [N, 1, ...]."""
    deviation = z.reshape(z.shape[0] // group, -1).std(dim=1)
    return deviation.repeat_interleave(group).reshape(-1, *[1] * (z.dim() - 1))
