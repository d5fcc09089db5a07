"""Score distillation via inversion (Lukoianov et al. 2024, arXiv 2405.15891): SDS at the noise that DDIM finds.

| symbol | variable  | equation                                                                                  |
|--------|-----------|-------------------------------------------------------------------------------------------|
| x_t    | x.z_t     | x inverted to t by DDIM, guided away from the prompt, with eta of fresh noise a step        |
| E      | mixed     | the guided prediction at x_t, Cfg(7.5)                                                    |
| X      | target    | (x_t - sigma E) / alpha                                                                   |
| G      | grad      | x - X                                                                                     |

So it is `Sds` with another noising and the weighting "recon". In the authors' code the inversion ends up to a tenth of
the time beyond the t that the network is told, and its first step asks at a time below zero; here the two agree and the
grid is even (see `ddim_invert`). On a Gaussian with the plain prediction in both directions X is
mu + (x - mu) / sqrt(1 + sigma^2 / (alpha s)^2): the gradient vanishes at the mean alone, not for every x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core import Condition, Latent, Mix, Noised, Prior, Step
from ..diffusion import ddim_invert, draw_t
from ..schedules import Ramp, Range
from .mix import Cfg, Repel
from .sds import Sds
from .weights import Weighting, check_conditions, check_inversion, check_steps


@dataclass(frozen=True)
class Sdi(Sds):
    """Descend toward the clean picture that follows from the inverted render.

    Two rows for each view in `steps` forwards in turn, then two rows once more. inversion: the mix of the walk; the
    authors guide it by -7.5. steps: of the inversion. eta: fresh noise after each of its steps, 0 for none. The other
    fields are those of `Sds`. Raises ValueError for values out of range.
    """

    weighting: Weighting = "recon"
    mix: Mix = Cfg(7.5)
    t: Range = Range(Ramp(0.98, 0.25), Ramp(0.98, 0.25))
    inversion: Mix = Repel(7.5)
    steps: int = 10
    eta: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps)
        if not 0 <= self.eta < float("inf"):
            raise ValueError(f"eta must be a finite number of at least 0, given {self.eta}.")

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        super().check(prior, names)
        check_conditions("SDI", self.inversion.names, names)
        check_inversion("SDI", prior)

    def noised(self, prior: Prior, z: Latent, conditions: Mapping[str, Condition], step: Step) -> Noised:
        """The latent under the noise that the prior would take away again."""
        t = draw_t(prior, z.shape[0], step, self.t(step.progress)).to(z.device)
        return ddim_invert(prior, z, conditions, step, t, self.steps, self.inversion, self.eta)[0]
