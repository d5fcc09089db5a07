"""How named noise predictions become one: classifier-free guidance, Perp-Neg and the x0 rescale.

| symbol     | variable       | equation                                                             |
|------------|----------------|----------------------------------------------------------------------|
| s          | Cfg.scale      | E_cfg = E_base + s (E_cond - E_base) (Ho, Salimans 2022)             |
| -s         | Repel.scale    | the same away from the prompt, E_base - s (E_cond - E_base)          |
| dC         | classifier     | E_cond - E_base                                                      |
| w_i        | weight         | Condition.weight of negative i, at most 0                            |
| E_perp     | PerpNeg        | E_base + s (dC + sum_i w_i perp(E_i - E_base, dC))                   |
| perp(a, b) | perpendicular  | a - <a, b> / <b, b> b, in each row                                   |
| phi        | Rescale.phi    | X' = (phi f + 1 - phi) X(E_mix)                                      |
| s_I, s_T   | Instruct       | E_0 + s_I (E_I - E_0) + s_T (E_T - E_I)                              |
| f          | factor         | (std X(E_cond) + 1e-8) / (std X(E_mix) + 1e-8), over one joint group |

E_I is told the source's picture, E_T also the instruction, E_0 neither (InstructPix2Pix, Brooks et al. 2022, arXiv
2211.09800). Guidance scales have this one meaning everywhere. Code bases that write E_cond + s' (E_cond - E_base) mean
s' = s - 1. Perp-Neg: Armandpour et al. 2023 (arXiv 2304.04968). The rescale is that of Lin et al. 2024 (arXiv
2305.08891), in MVDream's form (Shi et al. 2023, arXiv 2308.16512).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..core import Condition, Mix, Noised
from ..diffusion import eps_from_x0, x0_from_eps

BASES = ("uncond", "negative")


def check_base(base: str) -> None:
    """Raise ValueError for a base of guidance that is neither the empty nor the negative prompt."""
    if base not in BASES:
        raise ValueError(f'base must be one of {", ".join(BASES)}, given "{base}".')


def check_scale(scale: float, name: str = "scale") -> None:
    """Raise ValueError for a guidance scale that is negative or not finite."""
    if not 0 <= scale < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0, given {scale}.")


def toward(cond: Tensor, base: Tensor, scale: float | Tensor) -> Tensor:
    """E_base + s (E_cond - E_base). scale: s, one number, or one in each row as [N, 1, ...]."""
    return base + scale * (cond - base)


@dataclass(frozen=True)
class Alone:
    """One prediction as it is. name: its condition."""

    name: str = "cond"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def __call__(self, eps: Mapping[str, Tensor], conditions: Mapping[str, Condition], x: Noised, group: int) -> Tensor:
        """The prediction [N, c, *s]."""
        return eps[self.name]


@dataclass(frozen=True)
class Instruct:
    """What an instruction changes and what its source keeps: E_uncond + image_scale (E_image - E_uncond) + scale
    (E_instruct - E_image). Raises ValueError for a negative scale.
    """

    scale: float = 7.5
    image_scale: float = 1.5

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_scale(self.image_scale, "image_scale")

    @property
    def names(self) -> tuple[str, ...]:
        return ("uncond", "image", "instruct")

    def __call__(self, eps: Mapping[str, Tensor], conditions: Mapping[str, Condition], x: Noised, group: int) -> Tensor:
        """The combined prediction [N, c, *s]."""
        source = toward(eps["image"], eps["uncond"], self.image_scale)
        return source + self.scale * (eps["instruct"] - eps["image"])


@dataclass(frozen=True)
class Cfg:
    """Classifier-free guidance, E_base + scale (E_cond - E_base).

    scale: 0 gives the base, 1 the conditional prediction. base: the condition "uncond" (the empty prompt) or
    "negative" (a negative prompt). Raises ValueError for a negative scale or another base.
    """

    scale: float = 4.0
    base: str = "uncond"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_base(self.base)

    @property
    def names(self) -> tuple[str, ...]:
        return ("cond", self.base)

    def __call__(self, eps: Mapping[str, Tensor], conditions: Mapping[str, Condition], x: Noised, group: int) -> Tensor:
        """The guided prediction [N, c, *s]."""
        return toward(eps["cond"], eps[self.base], self.scale)


@dataclass(frozen=True)
class Repel(Cfg):
    """Guidance away from the prompt, E_base - scale (E_cond - E_base): what SDI inverts with."""

    def __call__(self, eps: Mapping[str, Tensor], conditions: Mapping[str, Condition], x: Noised, group: int) -> Tensor:
        """The guided prediction [N, c, *s]."""
        return toward(eps["cond"], eps[self.base], -self.scale)


@dataclass(frozen=True)
class PerpNeg:
    """Guidance that leaves negatives only where they do not speak against the prompt itself.

    negatives: their conditions; "not_front" and "not_side" come from the prompts with weights by camera, and
    "negative", a user's own, stays apart from the empty prompt this way. A condition without a weight has -1. strength:
    times every weight (ScaleDreamer halves them). scale, base: as in `Cfg`. Raises ValueError for values out of range.
    """

    scale: float = 7.5
    negatives: tuple[str, ...] = ("not_front", "not_side")
    strength: float = 1.0
    base: str = "uncond"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_scale(self.strength, "strength")
        check_base(self.base)
        if not self.negatives:
            raise ValueError("negatives needs at least one condition; plain guidance is Cfg.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("cond", self.base, *self.negatives)))

    def __call__(self, eps: Mapping[str, Tensor], conditions: Mapping[str, Condition], x: Noised, group: int) -> Tensor:
        """The guided prediction [N, c, *s]."""
        base = eps[self.base]
        classifier = eps["cond"] - base
        direction = classifier
        for name in self.negatives:
            weight = conditions[name].weight
            against = -1.0 if weight is None else weight.to(base).reshape(-1, *[1] * (base.dim() - 1))
            direction = direction + self.strength * against * perpendicular(eps[name] - base, classifier)
        return base + self.scale * direction


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


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each row in double precision, [N, 1, ...]: in half precision a sum over a latent overflows."""
    return (a.double() * b.double()).flatten(1).sum(dim=1).reshape(-1, *[1] * (a.dim() - 1))


def perpendicular(a: Tensor, b: Tensor) -> Tensor:
    """What of a is at right angles to b, in each row; all of a where b is 0."""
    return a - (row_dot(a, b) / row_dot(b, b).clamp_min(1e-300)).to(a) * b
