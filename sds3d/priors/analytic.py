"""A mixture of Gaussians over pictures, whose score is known exactly: for tests, tutorials and the laws of plug-ins.

| symbol | variable | equation                                                        |
|--------|----------|-----------------------------------------------------------------|
| p(x_0) | prior    | sum_k pi_k N(mu_k, s^2 I)                                       |
| alpha  | alpha    | cos(pi t / 2), and sigma = sin(pi t / 2)                        |
| p(x_t) |          | sum_k pi_k N(alpha mu_k, v I) with v = alpha^2 s^2 + sigma^2    |
| r_k    | share    | pi_k N(x_t; alpha mu_k, v I), divided by their sum              |
| E(x_t) | eps      | -sigma grad log p(x_t) = sigma / v sum_k r_k (x_t - alpha mu_k) |

Its adapter is the same mixture with other means and another spread, both learnt: with one component it is a Gaussian
that is fitted to what it is shown, which makes the methods with a second network (VSD, ESD) solvable in closed form.

| symbol  | variable         | equation                                                                 |
|---------|------------------|--------------------------------------------------------------------------|
| mu_k(c) | shift, by_camera | mu_k + d + sum_j c_j d_j for a camera of numbers c; without one mu_k + d |
| s(c)    | log_scale        | s exp(l), one l for rows with a camera and one for rows without          |
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Cameras, Condition, Control, Image, Latent, Query, Step
from ..learners import AdamLearner
from .pixel import channels_first, channels_last

EDGE = 1e-3  # times are kept this far from 0 and 1, where sigma or alpha vanish


@dataclass(frozen=True, eq=False)
class AnalyticPrior:
    """See `core.Prior`.

    means: [K, 3, h, h] in [-1, 1], the middle of each component, in any float dtype. std: s, one for all, in the units
    of the means. names: a word or phrase for each component. A prompt means the components whose names occur in it,
    each as likely, and the empty prompt means all. group: rows that share one time; each row is denoised alone.
    data_range: the bound a guidance may put on |x_0|; None, because a Gaussian has no bound. camera_size: how many
    numbers tell an adapter the camera; 16 are those of a pose, and with one for each camera (1 at its place, else 0)
    every camera has a mean of its own.
    """

    means: Float[Tensor, "K 3 h h"] = field(repr=False)
    std: float
    names: tuple[str, ...]
    group: int = 1
    views_per_row: int = 1
    data_range: float | None = None
    camera_size: int = 16

    def __post_init__(self) -> None:
        if self.means.dim() != 4 or self.means.shape[1] != 3 or self.means.shape[2] != self.means.shape[3]:
            raise ValueError(f"means must be [K, 3, h, h], given {list(self.means.shape)}.")
        if len(self.names) != len(self.means) or len(set(self.names)) != len(self.names) or "" in self.names:
            raise ValueError(f"{len(self.means)} components need as many different names, given {self.names}.")
        if not 0 <= self.std < math.inf:
            raise ValueError(f"std must be a finite number of at least 0, given {self.std}.")

    @property
    def size(self) -> int:
        return self.means.shape[-1]

    def encode(self, image: Image) -> Latent:
        return channels_first(image, self.size)

    def decode(self, z: Latent) -> Image:
        return channels_last(z)

    def text(self, prompts: Sequence[str]) -> Float[Tensor, "n 1 K"]:
        """The probability pi of each component. Raises ValueError for a prompt that names none."""
        rows = [self.components(prompt) for prompt in prompts]
        return torch.stack([row / row.sum() for row in rows])[:, None]

    def components(self, prompt: str) -> Float[Tensor, "K"]:
        """1 for each component that a prompt means, else 0."""
        if not prompt:
            return self.means.new_ones(len(self.names))
        found = [re.search(rf"\b{re.escape(name)}\b", prompt) is not None for name in self.names]
        if not any(found):
            raise ValueError(f'"{prompt}" names nothing that this prior knows: {", ".join(self.names)}.')
        return self.means.new_tensor(found)

    def condition(
        self,
        text: Tensor,
        cameras: Cameras | None,
        reference: Image | None = None,
        control: Sequence[Control] = (),
    ) -> Condition:
        """text: [N, 1, K], or one row for all views. Cameras are not told, as every view has one distribution.

        Raises ValueError for a picture, which it cannot be told.
        """
        if reference is not None or control:
            raise ValueError("The analytic prior reads text, not reference or control pictures.")
        if cameras is not None and text.shape[0] == 1:
            text = text.expand(len(cameras), -1, -1)
        return Condition(text)

    def snap(self, t: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        return t.clamp(EDGE, 1 - EDGE)

    def noise_level(self, t: Float[Tensor, "N"]) -> tuple[Tensor, Tensor]:
        """alpha and sigma [N, 1, 1, 1] in t's dtype."""
        angle = self.snap(t).reshape(-1, 1, 1, 1) * (math.pi / 2)
        return angle.cos(), angle.sin()

    def predict(self, queries: Mapping[str, Query]) -> dict[str, Latent]:
        """The exact eps under the queries' names; a query with an adapter is answered by the adapter."""
        with torch.no_grad():
            return {
                name: self.eps(query) if query.adapter is None else query.adapter(query)
                for name, query in queries.items()
            }

    def eps(self, query: Query) -> Latent:
        """E(x_t) of the table, differentiable in x_t."""
        means = self.means.to(query.z_t)
        return self.score(query, means[None], self.std * means.new_ones(()))

    def score(self, query: Query, means: Float[Tensor, "n K 3 h h"], std: Float[Tensor, ""]) -> Latent:
        """E(x_t) for a mixture with the query's text, means for all rows or for each, and one spread."""
        z_t = query.z_t
        alpha, sigma = (level.to(z_t) for level in self.noise_level(query.t))
        variance = alpha**2 * std**2 + sigma**2
        away = z_t[:, None] - alpha[:, None] * means  # [N, K, 3, h, h]
        log_share = query.condition.text[:, 0].to(z_t).log() - away.square().flatten(2).sum(2) / (
            2 * variance.flatten(1)
        )
        share = log_share.softmax(dim=1)[..., None, None, None]
        return sigma / variance * (share * away).sum(dim=1)

    def adapter(self, rank: int, lr: float, step: Step) -> FittedMixture:
        """A mixture that can be fitted, at first this very one; rank is that of layers, which it has not."""
        return FittedMixture(self, lr)


class FittedMixture(AdamLearner):
    """The prior's mixture with learnt means and spread, fresh from `prior` exactly what it is; see the tables above.

    What a camera adds is linear in its numbers. A condition without a camera asks for all cameras at once.
    """

    def __init__(self, prior: AnalyticPrior, lr: float) -> None:
        super().__init__()
        self.prior = prior
        shape = prior.means.shape[1:]
        self.shift = nn.Parameter(prior.means.new_zeros(shape))
        self.by_camera = nn.Parameter(prior.means.new_zeros(prior.camera_size, *shape))
        self.log_scale = nn.Parameter(prior.means.new_zeros(2))
        self.optimise(lr, decay=0.0)

    def forward(self, query: Query) -> Latent:
        """E(x_t) of the fitted mixture. Raises ValueError for a camera of another size than it was made for."""
        camera, shift = query.condition.camera, self.shift[None]
        if camera is not None:
            if camera.shape[1] != len(self.by_camera):
                raise ValueError(f"This adapter reads {len(self.by_camera)} numbers a camera, given {camera.shape[1]}.")
            shift = shift + torch.einsum("nk,kchw->nchw", camera.to(shift), self.by_camera)
        std = self.prior.std * self.log_scale[0 if camera is None else 1].exp()
        return self.prior.score(query, (self.prior.means + shift[:, None]).to(query.z_t), std.to(query.z_t))
