"""Score distillation from rectified flow (Yang et al. 2024, arXiv 2406.03293), and its form with refined noise.

| symbol | variable   | equation                                                                                 |
|--------|------------|------------------------------------------------------------------------------------------|
| s      | sigma      | time of the flow, x_s = (1 - s) x + s eps; alpha = 1 - s                                 |
| u      |            | E - X(E), the velocity eps - x that a prediction E implies                               |
| G      | grad       | u - (eps - x) = (x - X) / s = (E - eps) / alpha                                          |
| eps'   | x.eps      | RFDS-Rev: eps + (1 - s) (u_c - (eps - x)) = E_c, the noise that the prior sees           |

So it is `Sds` with the weighting "flow". Any other prior is read as a flow by scaling x_t by 1 / (alpha + sigma), which
gives s = sigma / (alpha + sigma) and the weight (alpha + sigma) / alpha. RFDS-Rev asks once without guidance and takes
the answer for the noise, which is what its refinement comes to.

The authors take the mean of squares over batch and pixels, hence a factor that a term's weight covers here; in the form
for Stable Diffusion 3 each row also has a random weight, the sigmoid of a normal number, which is left out. Read in
their code: scale 100, sigma from about 0.058 to 0.875.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core import Condition, Latent, Mix, Noised, Prior, Step
from ..diffusion import add_noise
from ..schedules import Range
from .mix import Cfg
from .sds import Sds
from .weights import Weighting


@dataclass(frozen=True)
class Rfds(Sds):
    """Descend the velocity's residual; one forward of two rows for each view. The fields are those of `Sds`."""

    weighting: Weighting = "flow"
    mix: Mix = Cfg(7.5)
    t: Range = Range(0.06, 0.875)


@dataclass(frozen=True)
class RfdsRev(Rfds):
    """RFDS at the noise that the prior sees in the render: a forward of one row for each view, then one of two rows."""

    def noised(self, prior: Prior, z: Latent, conditions: Mapping[str, Condition], step: Step) -> Noised:
        """The latent under the prediction E_c in the place of the drawn noise."""
        x = super().noised(prior, z, conditions, step)
        return add_noise(prior, z, x.t, prior.predict(x.ask(conditions, "cond"))["cond"])
