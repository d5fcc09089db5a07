"""Reconstruction at one falling noise level: every view is pulled to what the prior makes of it.

| symbol | variable       | equation                                               |
|--------|----------------|--------------------------------------------------------|
| x      | z              | the latent of the rendered views                       |
| t      | level          | one time for all views, falling over the stage         |
| E      | guided         | E_uncond + scale (E_cond - E_uncond) at x_t            |
| X      | target         | (x_t - sigma E) / alpha                                |
| G      | grad           | x - X                                                  |

It is SDS in its target form with the weighting "recon" and no randomness in t: layout first, detail last.
"""

from dataclasses import dataclass

from sds3d.core import Guidance, Guided
from sds3d.diffusion import diffuse, x0_from_eps
from sds3d.guidance.mix import Cfg
from sds3d.schedules import Number, Ramp, value


@dataclass(frozen=True)
class Reconstruct(Guidance):
    """scale: of classifier-free guidance. level: the time in [0, 1], a number or a schedule over progress."""

    scale: float = 4.0
    level: Number = Ramp(0.98, 0.1)

    def check(self, prior, names):
        if not {"cond", "uncond"} <= names:
            raise ValueError('Reconstruct needs the conditions "cond" and "uncond".')

    def __call__(self, prior, views, conditions, step, state):
        z = prior.encode(views.image)
        t = value(self.level, step.progress)
        x = diffuse(prior, z, step, t=(t, t))
        eps = prior.predict(x.ask(conditions, "cond", "uncond"))
        guided = Cfg(self.scale)(eps, conditions, x, prior.group)
        target = x0_from_eps(x.z_t, guided, x.alpha, x.sigma)
        return Guided(z, z.detach() - target, target=target)
