"""Distribution matching under any f-divergence (f-distill, Xu et al. 2025, arXiv 2502.15681).

| symbol | variable                | equation                                                                     |
|--------|-------------------------|------------------------------------------------------------------------------|
| r      | Critic.ratio            | p(x_t) / q(x_t), the prior's density over the renders', from a discriminator |
| f      |                         | D_f = E_q f(r)                                                               |
| h(r)   | DIVERGENCES[divergence] | r^2 f''(r), up to a factor                                                   |
| h^     | Critic.relative         | h over its mean                                                              |
| G      | grad                    | h^ G_DMD, G_DMD = (X_f - X_r) / m of `dmd`                                   |

| divergence        | name    | f(r)                               | h(r)        | it                       |
|-------------------|---------|------------------------------------|-------------|--------------------------|
| reverse KL        | rkl     | -log r                             | 1           | seeks modes; is DMD      |
| forward KL        | kl      | r log r                            | r           | covers mass              |
| Jensen-Shannon    | js      | r log r - (r + 1) log((r + 1) / 2) | r / (1 + r) | is bounded; paper's best |
| softened rev. KL  | sf      | (r + 1) log((r + 1) / 2 r)         | 1 / (1 + r) |                          |
| squared Hellinger | sh      | 1 - sqrt r                         | sqrt r      |                          |
| Jeffreys          | jf      | (r - 1) log r                      | 1 + r       |                          |
| Neyman chi^2      | neyman  | (1 - r)^2 / r                      | 1 / r       |                          |
| Pearson chi^2     | pearson | (r - 1)^2                          | r^2         | not in the authors' code |

The authors take the mean of h over their batch. A batch of views must equal its groups, so ours is a running mean over
the steps before, and a first step is DMD's. The discriminator judges views whatever their camera and prompt: its ratio
is that of all views together. Where logits are constant or the divergence is rkl, this is DMD at every step.

Each step costs what DMD costs and one update of the discriminator, and each of the first ones, until the samples are
there, 2 `sample_steps` rows a view more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..core import Condition, Guidance, Guided, Learner, Mix, Prior, Query, Step, Views
from ..diffusion import ddim_sample
from ..schedules import Range
from .critic import Critic
from .dmd import matching_weight
from .fake import Fake, from_camera, judge
from .mix import Cfg
from .weights import check_conditions, check_times

DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "rkl": lambda r: r.new_ones(r.shape),
    "kl": lambda r: r,
    "js": lambda r: r / (1 + r),
    "sf": lambda r: 1 / (1 + r),
    "sh": lambda r: r.sqrt(),
    "jf": lambda r: 1 + r,
    "neyman": lambda r: 1 / r,
    "pearson": lambda r: r**2,
}
KEEP = 0.9  # of the running mean of h, at each step


@dataclass(frozen=True)
class FDistill(Guidance):
    """Descend an f-divergence between the renders and the prior, by DMD's direction and h of the density ratio.

    divergence: a name of the table above. samples: the discriminator's real latents, a multiple of the prior's joint
    group; sample_steps, sample_scale: how the prior draws them, by DDIM. critic_lr: of the discriminator's AdamW. The
    other fields are those of `Dmd`. Raises ValueError for values out of range.
    """

    divergence: Literal["rkl", "kl", "js", "sf", "sh", "jf", "neyman", "pearson"] = "js"
    samples: int = 32
    sample_steps: int = 20
    sample_scale: float = 1.75
    critic_lr: float = 1e-3
    mix: Mix = Cfg(1.75)
    t: Range = Range(0.02, 0.98)
    fake: Fake = Fake(updates=5)

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise ValueError(f'divergence must be one of {", ".join(DIVERGENCES)}, given "{self.divergence}".')
        for name in ("samples", "sample_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, given {getattr(self, name)}.")
        for name in ("sample_scale", "critic_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a finite number above 0, given {getattr(self, name)}.")
        check_times(self.t)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions("f-distill", (*self.mix.names, "cond", "uncond"), names)
        self.fake.check("f-distill", prior, names)
        if prior.views_per_row != 1:
            raise ValueError("The discriminator of f-distill reads pictures, and this prior's latents are videos.")
        if self.samples % prior.group:
            raise ValueError(
                f"This prior draws {prior.group} views jointly: samples must be a multiple of it, given {self.samples}."
            )

    def init(self, prior: Prior, step: Step) -> Mapping[str, Learner]:
        like = prior.text([""])
        shape = prior.encode(like.new_zeros(1, prior.size, prior.size, 3)).shape[1:]
        critic = Critic(shape, self.samples, self.critic_lr, like, step.child("critic"))
        return {"fake": self.fake.learner(prior, step), "critic": critic}

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views, with the parts of `Judged.descend`; then both networks are trained on them."""
        told, critic = from_camera(conditions["cond_plain"], views), state["critic"]
        assert isinstance(critic, Critic)
        judged = judge(prior, views, conditions, self.mix, self.t(step.progress), step, fake=(told, state["fake"]))
        x, z = judged.x, judged.z.detach()
        h = DIVERGENCES[self.divergence](critic.ratio(Query(x.z_t, x.t, told), prior.group))
        weight = matching_weight(z, x, judged.real, prior.group) * critic.relative(h, KEEP).reshape(x.alpha.shape)
        critic.average(h, KEEP)
        if not critic.full:
            noise = step.child("samples").normal("noise", z)
            samples = ddim_sample(prior, noise, conditions, Cfg(self.sample_scale), self.sample_steps)
            critic.keep(samples)
        critic.judge(prior, z, told, step.child("critic"))
        self.fake.fit(state["fake"], prior, z, told, conditions, step)
        return judged.descend(weight, judged.eps["fake"])
