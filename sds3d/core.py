"""The words of sds3d: what flows between a prior, a guidance, a renderer and a representation.

Everything here is a frozen batch of tensors, a frozen set of numbers, or a protocol. The data flows one way:

    prompt -> prior -> guidance -> gradient -> renderer -> representation -> stage -> asset

World frame: right-handed, +z up, the object's front faces +x and fits a sphere of radius 1. Camera frame: OpenCV
(+x right, +y down, +z forward). Colour is sRGB in [0, 1]. Time, progress and every schedule are in [0, 1].
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

Image = Float[Tensor, "B H W 3"]  # colours in [0, 1], channels last, B views
Latent = Float[Tensor, "N c *s"]  # what the network sees; N = B rows (B / F for a video prior with *s = F h w)
Control = tuple[Image, Tensor | float]  # a picture that steers, and how much: one number, or one for each row [B]


@dataclass(frozen=True)
class Cameras:
    """A batch of B pinhole cameras.

    c2w: [B, 4, 4] camera to world, camera axes as in OpenCV. K: [B, 3, 3] intrinsics in pixels, where the centre of the
    top-left pixel is (0.5, 0.5). height, width: the picture's size in pixels. time: [B] in [0, 1], or None for what
    does not move.
    """

    c2w: Float[Tensor, "B 4 4"]
    K: Float[Tensor, "B 3 3"]
    height: int
    width: int
    time: Float[Tensor, "B"] | None = None

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def __getitem__(self, rows: slice) -> Cameras:
        time = None if self.time is None else self.time[rows]
        return replace(self, c2w=self.c2w[rows], K=self.K[rows], time=time)

    @property
    def position(self) -> Float[Tensor, "B 3"]:
        return self.c2w[:, :3, 3]

    @property
    def radius(self) -> Float[Tensor, "B"]:
        """Distance from the world's origin."""
        return self.position.norm(dim=-1)

    @property
    def azimuth_deg(self) -> Float[Tensor, "B"]:
        """Angle about +z in [0, 360): 0 sees the front (+x), 90 the subject's left side (+y), 180 the back."""
        x, y, _ = self.position.unbind(-1)
        return torch.rad2deg(torch.atan2(y, x)) % 360

    @property
    def elevation_deg(self) -> Float[Tensor, "B"]:
        """Angle above the horizon in [-90, 90]."""
        x, y, z = self.position.unbind(-1)
        return torch.rad2deg(torch.atan2(z, torch.hypot(x, y)))

    @property
    def fov_y_deg(self) -> Float[Tensor, "B"]:
        """Full vertical angle of view, for a principal point in the middle."""
        return torch.rad2deg(2 * torch.atan(self.height / (2 * self.K[:, 1, 1])))

    def to(self, like: Tensor) -> Cameras:
        """The same cameras in the dtype and on the device of `like`."""
        time = None if self.time is None else self.time.to(like)
        return replace(self, c2w=self.c2w.to(like), K=self.K.to(like), time=time)

    def resized(self, height: int, width: int) -> Cameras:
        """The same view sampled by another number of pixels."""
        scale = self.K.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(self, K=self.K * scale[:, None], height=height, width=width)


@dataclass(frozen=True)
class Background:
    """The plain colour behind the object: rgb [B, 3] in [0, 1], equal within a group of views.

    name: one word per group that a prompt may use for it ("white", "grey"), or None where it is not to be named.
    """

    rgb: Float[Tensor, "B 3"]
    name: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Screen:
    """Where each of M drawn elements fell in each of B views; growth reads it.

    means2d: [B, M, 2] in normalised device coordinates ([-1, 1] across the picture), with its gradient kept after the
    backward pass. radii: [B, M] in pixels, 0 where the element is not in the picture.
    """

    means2d: Float[Tensor, "B M 2"]
    radii: Float[Tensor, "B M"]


@dataclass(frozen=True)
class RenderOutput:
    """What a renderer returns for B views of H x W pixels.

    rgb lies over the step's background. depth: camera z, the alpha-weighted mean, 0 where nothing is drawn. normal:
    world, unit, 0 outside. albedo: unshaded colour, None where nothing is shaded. screen: None unless growth needs it.
    away: of a volume, the weighted sum of max(0, normal . ray)^2 along a ray; above 0 where what is seen faces away.
    uv: of a textured mesh, the place in its square that each pixel shows, without gradient; -1 where none is.
    """

    rgb: Image
    alpha: Float[Tensor, "B H W 1"]
    depth: Float[Tensor, "B H W 1"]
    normal: Float[Tensor, "B H W 3"]
    albedo: Image | None = None
    screen: Screen | None = None
    away: Float[Tensor, "B H W 1"] | None = None
    uv: Float[Tensor, "B H W 2"] | None = None


@dataclass(frozen=True)
class Views:
    """What one guidance term looks at.

    image: the rgb, normal or depth that the prior is to see. source: the frozen original's image at the same cameras
    when an asset is edited, else None.
    """

    image: Image
    out: RenderOutput
    cameras: Cameras
    source: Image | None = None


@dataclass(frozen=True)
class Condition:
    """What the network is told about each of N rows.

    text: [N, L, d] token embeddings. camera: [N, k] in the prior's own encoding; None adds nothing, which is not the
    same as a camera of zeros. image: image-prompt tokens or reference latents. control: pictures [N, 3, h, w] as the
    prior's ControlNets see them, each with its scale [N]; a row of scale 0 is not steered. weight: [N], the Perp-Neg
    weight of a negative prompt. away: a negative text [N, L, d] and how much of it the network's attention takes away,
    where the prior's `reads_away` says that it can (NASA).
    """

    text: Tensor
    camera: Tensor | None = None
    image: Tensor | None = None
    control: tuple[tuple[Tensor, Tensor], ...] = ()
    weight: Tensor | None = None
    away: tuple[Tensor, float] | None = None


@dataclass(frozen=True)
class Query:
    """One question to the network: which noise is in z_t [N, c, *s] at time t [N] in [0, 1], told `condition`?"""

    z_t: Tensor
    t: Float[Tensor, "N"]
    condition: Condition
    adapter: Learner | None = None


@dataclass(frozen=True)
class Noised:
    """One diffused batch: z_t = alpha z_0 + sigma eps, with alpha and sigma [N, 1, ...] and t [N] in [0, 1]."""

    z_t: Tensor
    t: Float[Tensor, "N"]
    eps: Tensor
    alpha: Tensor
    sigma: Tensor

    def ask(self, conditions: Mapping[str, Condition], *names: str, **renamed: str) -> dict[str, Query]:
        """Queries named as their conditions; `ask(conditions, src="source")` calls the answer "src".

        Two asks are joined with `|` into one forward. Raises ValueError for a condition that does not exist.
        """
        wanted = {**{name: name for name in names}, **renamed}
        for name in wanted.values():
            if name not in conditions:
                known = ", ".join(sorted(conditions)) or "none"
                raise ValueError(f'There is no condition "{name}" here; known are: {known}.')
        return {answer: Query(self.z_t, self.t, conditions[name]) for answer, name in wanted.items()}


@dataclass(frozen=True)
class Step:
    """Where a run stands, and the source of every random number it draws.

    Each row draws from a stream of its own, hashed from (seed, stage, path, name, index, row) on the CPU. So resuming
    needs no generator state, two runs share their noise, terms do not disturb one another, devices agree, and a batch
    equals its groups. progress: index / max(steps - 1, 1). row: the number of the batch's first row.
    """

    seed: int
    stage: str = ""
    index: int = 0
    progress: float = 0.0
    path: tuple[str, ...] = ()
    row: int = 0

    def _generator(self, name: str, row: int, fixed: bool) -> torch.Generator:
        index = -1 if fixed else self.index
        key = repr((self.seed, self.stage, self.path, name, index, row)).encode()
        value = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
        return torch.Generator().manual_seed(value & (2**63 - 1))

    def normal(self, name: str, like: Tensor, fixed: bool = False) -> Tensor:
        """Standard normal noise in shape, dtype and device of `like` [N, ...]; `fixed` draws the same at every step."""
        rows = [
            torch.randn(like.shape[1:], generator=self._generator(name, self.row + i, fixed))
            for i in range(like.shape[0])
        ]
        return torch.stack(rows).to(like) if rows else torch.zeros_like(like)

    def uniform(self, name: str, n: int, fixed: bool = False) -> Float[Tensor, "n"]:
        """n uniform numbers in [0, 1), one per row, on the CPU."""
        return torch.cat([torch.rand(1, generator=self._generator(name, self.row + i, fixed)) for i in range(n)])

    def child(self, name: str) -> Step:
        """An independent source: for a term, for each of k noises, for a second `diffuse`."""
        return replace(self, path=(*self.path, name))


@dataclass(frozen=True)
class Guided:
    """Descend `grad` at `at` (both [N, c, *s]).

    parts: name -> latent, which add up to grad, for the microscope. target: X [N, c, *s] where the method has the form
    grad = k (at - X) with one k per row, computed from the predictions by the x0 formula and never as at - grad; None
    where the method pulls toward no picture.
    """

    at: Tensor
    grad: Tensor
    parts: Mapping[str, Tensor] | None = None
    target: Tensor | None = None

    def pull(self) -> Float[Tensor, "N"]:
        """k of grad = k (at - target), by least squares in each row. Raises ValueError where there is no target."""
        if self.target is None:
            raise ValueError("This gradient pulls toward no target, so it has no strength of pull.")
        away, grad = (self.at.detach() - self.target).flatten(1), self.grad.flatten(1)
        return (grad * away).sum(1) / away.square().sum(1).clamp_min(torch.finfo(away.dtype).tiny)

    def loss(self) -> Tensor:
        """A scalar whose gradient with respect to `at` is exactly grad / N, summed over channels and space.

        Its value is always zero: a score-distillation gradient is in general the gradient of no function, so there is
        no loss to report.
        """
        return ((self.at - self.at.detach()) * self.grad.detach()).sum() / self.at.shape[0]


@runtime_checkable
class Prior(Protocol):
    """A frozen diffusion model behind the one convention: noisy latent in, eps out, by name of the question.

    z_t = alpha(t) z_0 + sigma(t) eps. A prior keeps the dtype of z; it casts inside `predict`, once.
    """

    @property
    def group(self) -> int:
        """Rows denoised jointly: 1, or 4 for multi-view; one t, elevation and field of view per group."""
        ...

    @property
    def views_per_row(self) -> int:
        """1, or F for a video prior."""
        ...

    @property
    def size(self) -> int:
        """The side in pixels that `encode` resizes to."""
        ...

    @property
    def data_range(self) -> float | None:
        """The bound on |z_0|: 1 for pixels, None for latents that have none."""
        ...

    def encode(self, image: Image) -> Latent:
        """The latent of a picture, differentiable."""
        ...

    def decode(self, z: Latent) -> Image:
        """The picture of a latent."""
        ...

    def text(self, prompts: Sequence[str]) -> Tensor:
        """Token embeddings [n, L, d]; called once per stage. Raises ValueError for words the prior cannot know."""
        ...

    def condition(
        self,
        text: Tensor,
        cameras: Cameras | None,
        reference: Image | None = None,
        control: Sequence[Control] = (),
    ) -> Condition:
        """What the network is told: called at every step, cheap."""
        ...

    def noise_level(self, t: Float[Tensor, "N"]) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t, each [N, 1, ...] so that it broadcasts over latents."""
        ...

    def snap(self, t: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """t moved to the grid that the model was trained on."""
        ...

    def predict(self, queries: Mapping[str, Query]) -> dict[str, Tensor]:
        """eps for each query, under the same names: one batched forward without gradient, equal queries merged."""
        ...

    def adapter(self, rank: int, lr: float, step: Step) -> Learner | None:
        """A trainable copy of the network, or None where the prior offers none."""
        ...


class Learner(nn.Module, ABC):
    """A network that is trained during the run (an adapter, a fake network, a discriminator); it owns its optimiser."""

    @abstractmethod
    def forward(self, query: Query) -> Tensor:
        """eps [N, c, *s], or logits [N] for a discriminator, with gradient to the learner's own weights."""

    @abstractmethod
    def fit(self, loss: Tensor) -> float:
        """zero_grad, backward, optimiser step; returns the loss's value."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Weights and optimiser moments, for the checkpoint."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""


class Guidance(ABC):
    """A score-distillation method: frozen numbers and one equation."""

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        """Raise ValueError, before the run, for what the method needs and the term does not give.

        names: the conditions that the prompts provide; it holds "source" exactly when there is a frozen source.
        """
        return None

    def init(self, prior: Prior, step: Step) -> Mapping[str, Learner]:
        """The learners the method trains; none for most methods."""
        return {}

    @abstractmethod
    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """The gradient at the latent of `views.image`."""


@runtime_checkable
class Mix(Protocol):
    """How named predictions become one: classifier-free guidance, Perp-Neg, a rescale."""

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions that must be asked."""
        ...

    def __call__(
        self, eps: Mapping[str, Tensor], conditions: Mapping[str, Condition], x: Noised, group: int
    ) -> Tensor: ...


class Representation(nn.Module, ABC):
    """Parameters that can be drawn. It owns its optimisers, because growth edits both."""

    @abstractmethod
    def prepare(self, optimise: object, step: Step) -> None:
        """Make the optimisers from the recipe's numbers: at each stage's start, before `load`."""

    def at(self, time: Float[Tensor, "B"] | None) -> Representation:
        """The representation at a time in [0, 1]: itself, for what does not move."""
        return self

    @abstractmethod
    def update(self, out: RenderOutput, step: Step) -> Mapping[str, float]:
        """Optimiser step, zero_grad, then growth and pruning. Returns numbers worth logging."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Parameters, optimiser moments and growth statistics."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; the number of elements may change."""


@runtime_checkable
class Renderer(Protocol):
    """Draws a representation. step None: no jitter, the fixed light."""

    def __call__(
        self, rep: Representation, cameras: Cameras, background: Background, step: Step | None = None
    ) -> RenderOutput: ...
