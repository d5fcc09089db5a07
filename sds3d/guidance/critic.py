"""A small discriminator that tells the prior's own samples from renders, both noised: the density ratio of f-distill.

| symbol    | variable     | equation                                                                          |
|-----------|--------------|-----------------------------------------------------------------------------------|
| d(x_t, t) | Critic       | logit; at its best log(p(x_t) / q(x_t)), p the prior's density and q the renders' |
| r         | ratio        | exp(d), with d cut to [-10, 10] and r to [0.1, 20]                                |
| L_d       | Critic.judge | mean softplus(d(render)) + mean softplus(-d(sample))                              |

Its real pictures are samples that the prior draws itself, by DDIM, for the views of the first steps; nothing else is
ever taken for real. They are kept in its state, and so in the checkpoint.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Condition, Latent, Prior, Query, Step
from ..diffusion import diffuse, draw_shared
from ..learners import AdamLearner

WIDTHS = (32, 64, 64)  # channels after each convolution, of which all but the first halve the picture
LOGIT, RATIO = 10.0, (0.1, 20.0)  # the bounds of FastGen's code


class Critic(AdamLearner):
    """Three convolutions, a mean over the picture and a linear layer that starts at zero, so that at first r = 1.

    shape: [c, h, w] of a latent. samples: how many real latents are kept, in `reals`, of which `held` are there yet.
    mean: the running mean of h(r), see `f_distill`, over `seen` steps. like: dtype and device.
    """

    reals: Tensor
    held: Tensor
    mean: Tensor
    seen: Tensor

    def __init__(self, shape: Sequence[int], samples: int, lr: float, like: Tensor, step: Step) -> None:
        super().__init__()
        channels = (shape[0] + 1, *WIDTHS)  # one more channel for the time
        kernels = [like.new_empty(n, m, 3, 3) for m, n in itertools.pairwise(channels)]
        self.kernels = nn.ParameterList(
            step.normal(f"kernel {i}", kernel, fixed=True) * math.sqrt(2 / kernel[0].numel())
            for i, kernel in enumerate(kernels)
        )
        self.biases = nn.ParameterList(like.new_zeros(n) for n in WIDTHS)
        self.head = nn.Parameter(like.new_zeros(WIDTHS[-1]))
        self.offset = nn.Parameter(like.new_zeros(()))
        self.register_buffer("reals", like.new_zeros(samples, *shape))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", like.new_zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.optimise(lr, decay=0.0)

    def forward(self, query: Query) -> Float[Tensor, "N"]:
        """Logits, above 0 where z_t looks like a sample; what the condition says is not read."""
        z_t = query.z_t.to(self.head)
        time = query.t.to(z_t).reshape(-1, 1, 1, 1).expand(-1, 1, *z_t.shape[2:])
        x = torch.cat([z_t, time], dim=1)
        for i, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            x = F.silu(F.conv2d(x, kernel, bias, stride=min(i + 1, 2), padding=1))
        return x.mean(dim=(2, 3)) @ self.head + self.offset

    @property
    def full(self) -> bool:
        return int(self.held) == len(self.reals)

    @torch.no_grad()
    def keep(self, samples: Latent) -> None:
        """Add real latents [N, c, h, w], as many as there is room for."""
        held = int(self.held)
        taken = samples[: len(self.reals) - held]
        self.reals[held : held + len(taken)] = taken
        self.held += len(taken)

    def judge(self, prior: Prior, renders: Latent, condition: Condition, step: Step) -> None:
        """One update on renders and as many of the kept samples, whole groups at random, each under fresh noise."""
        rows, group = renders.shape[0], prior.group
        pick = draw_shared(prior, rows, step, "pick") * (int(self.held) // group)
        index = pick.long() * group + torch.arange(rows) % group
        sample = self.reals[index.to(self.reals.device)].to(renders)
        logits = []
        for name, z in (("render", renders), ("sample", sample)):
            x = diffuse(prior, z, step.child(name), (0.0, 1.0))
            logits.append(self(Query(x.z_t, x.t, condition)))
        self.fit(F.softplus(logits[0]).mean() + F.softplus(-logits[1]).mean())

    @torch.no_grad()
    def ratio(self, query: Query, group: int) -> Float[Tensor, "N"]:
        """r = p / q at z_t, cut to `RATIO`; a joint group is one sample and has one ratio, from its mean logit."""
        logit = self(query).reshape(-1, group).mean(1).repeat_interleave(group)
        return logit.clamp(-LOGIT, LOGIT).exp().clamp(*RATIO).to(query.z_t)

    @torch.no_grad()
    def average(self, h: Float[Tensor, "N"], keep: float) -> None:
        """Take a step's h into the running mean, which holds the past with the weight `keep`."""
        self.mean.mul_(keep).add_((1 - keep) * h.mean())
        self.seen += 1

    def relative(self, h: Float[Tensor, "N"], keep: float) -> Float[Tensor, "N"]:
        """h over its running mean of the steps before; 1 at the first step, which has none before it."""
        past = 1 - keep ** int(self.seen)  # the weight that the mean of that many steps has come to
        return h * past / self.mean.to(h) if int(self.seen) else torch.ones_like(h)
