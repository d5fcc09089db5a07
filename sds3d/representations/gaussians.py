"""Anisotropic 3D Gaussians with opacity and colour, and their optimiser, growth and pruning.

The model is 3D Gaussian Splatting (Kerbl et al. 2023) without spherical harmonics: score distillation asks for a
colour, not for reflections. Growth takes the top share of the Gaussians by accumulated screen gradient, because an
absolute threshold depends on the resolution and on the guidance scale; a Gaussian that is cloned in place gets the
opacity that leaves the picture at its centre as it was (Rota Bulo et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import RenderOutput, Representation, Step
from ..schedules import Number, Ramp, value
from .adam import adam_

WIDTHS = {"means": 3, "log_scales": 3, "quats": 4, "opacity_logits": None, "colour_logits": 3}  # columns of each tensor
SPLIT_SCALE = 0.02  # a larger Gaussian is split, a smaller one cloned; about half a pixel of a 64-pixel view
MEANS = Ramp(5e-3, 2e-4, curve="exponential")  # these rates suit about 300 steps on an object of radius 1
SCALES = Ramp(2e-2, 5e-3, curve="exponential")
COLOURS = Ramp(5e-2, 2e-2)
SHRINK = 1.6  # how much smaller the two halves of a split are (3DGS)


@dataclass(frozen=True)
class GaussianOptimise:
    """Rates of Adam, and when and how far the set of Gaussians grows.

    means, scales, quats, opacities, colours: learning rates, numbers or schedules over progress; means in world units
    (the object has radius 1), the others in log-scale, quaternion, logit and logit. grow: the window of progress in
    which growth and pruning happen, at `grow_events` evenly spaced moments. grow_share: share of the Gaussians that
    grow at one moment, until there are max_count. prune_opacity: weaker Gaussians are removed. max_scale: no
    standard deviation exceeds it, in world units.
    """

    means: Number = MEANS
    scales: Number = SCALES
    quats: Number = 1e-2
    opacities: Number = 5e-2
    colours: Number = COLOURS
    grow: tuple[float, float] = (0.1, 0.6)
    grow_events: int = 10
    grow_share: float = 0.05
    max_count: int = 10_000
    prune_opacity: float = 0.01
    max_scale: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.grow[0] < self.grow[1] <= 1:
            raise ValueError(f"grow must be an increasing range within [0, 1], given {list(self.grow)}.")
        if self.grow_events < 0 or self.max_count < 1:
            raise ValueError("grow_events must be 0 or more and max_count at least 1.")
        if not 0 <= self.grow_share <= 1 or not 0 <= self.prune_opacity < 1:
            raise ValueError("grow_share must lie in [0, 1] and prune_opacity in [0, 1).")
        if not self.max_scale > 0:
            raise ValueError(f"max_scale must be positive, given {self.max_scale}.")

    def rates(self, progress: float) -> dict[str, float]:
        """The learning rate of each parameter."""
        numbers = (self.means, self.scales, self.quats, self.opacities, self.colours)
        return {name: value(number, progress) for name, number in zip(WIDTHS, numbers, strict=True)}

    def events(self, progress: float) -> int:
        """How many moments of growth lie behind at a progress; the last is at the window's end."""
        passed = (progress - self.grow[0]) / (self.grow[1] - self.grow[0])
        return math.floor(self.grow_events * min(max(passed, 0.0), 1.0) + 1e-9)


class Gaussians(Representation):
    """M Gaussians; quats are wxyz, of any length.

    Raises ValueError for wrong shapes, an empty set, or numbers that are not finite; TypeError for other dtypes than
    floating point.
    """

    means: Float[Tensor, "M 3"]
    log_scales: Float[Tensor, "M 3"]
    quats: Float[Tensor, "M 4"]
    opacity_logits: Float[Tensor, "M"]
    colour_logits: Float[Tensor, "M 3"]

    def __init__(
        self,
        means: Float[Tensor, "M 3"],
        log_scales: Float[Tensor, "M 3"],
        quats: Float[Tensor, "M 4"],
        opacity_logits: Float[Tensor, "M"],
        colour_logits: Float[Tensor, "M 3"],
    ) -> None:
        super().__init__()
        tensors = dict(zip(WIDTHS, (means, log_scales, quats, opacity_logits, colour_logits), strict=True))
        _check_parameters(tensors)
        for name, tensor in tensors.items():
            setattr(self, name, nn.Parameter(tensor.detach().clone()))
        self._optimise: GaussianOptimise | None = None
        self._moments: dict[str, Tensor] = {}  # "first.means", "second.means", ...
        self._steps = 0
        self._events = 0
        self._gradient = self._seen = means.new_zeros(0)

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def scales(self) -> Float[Tensor, "M 3"]:
        """Standard deviations along the own axes, in world units."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Float[Tensor, "M"]:
        """The peak of each Gaussian's alpha, in (0, 1)."""
        return self.opacity_logits.sigmoid()

    @property
    def rgb(self) -> Float[Tensor, "M 3"]:
        """Colours in (0, 1)."""
        return self.colour_logits.sigmoid()

    @property
    def rotations(self) -> Float[Tensor, "M 3 3"]:
        """Own axes as columns, in the world frame."""
        return rotation_matrix(self.quats)

    def prepare(self, optimise: object, step: Step) -> None:
        """Start Adam and the growth statistics anew, with the numbers of a `GaussianOptimise`."""
        if not isinstance(optimise, GaussianOptimise):
            raise TypeError(f"Gaussians are optimised by a GaussianOptimise, given {type(optimise).__name__}.")
        self._optimise = optimise
        self._steps = self._events = 0
        self._moments = {
            f"{moment}.{name}": torch.zeros_like(tensor.detach())
            for name, tensor in self.named_parameters()
            for moment in ("first", "second")
        }
        self._forget()

    def _forget(self) -> None:
        """Clear the growth statistics: the sum of screen gradients and the number of views, per Gaussian."""
        self._gradient = self.means.detach().new_zeros(len(self))
        self._seen = self.means.detach().new_zeros(len(self))

    @torch.no_grad()
    def update(self, out: RenderOutput, step: Step) -> Mapping[str, float]:
        """One Adam step on the gradients at hand, then growth and pruning where a moment of them is due.

        Returns the count and, at a moment of growth, how many were added and removed. Raises ValueError when
        `prepare` was not called or when growth needs the screen and the renderer gave none.
        """
        optimise = self._optimise
        if optimise is None:
            raise ValueError("These Gaussians have no optimiser yet: call prepare() first.")
        due = optimise.events(step.progress)
        if self._events < optimise.grow_events:
            self._watch(out)
        self._adam(optimise.rates(step.progress))
        self.log_scales.clamp_(max=math.log(optimise.max_scale))
        numbers: dict[str, float] = {}
        if due > self._events:
            self._events = due
            removed = self._prune(optimise)
            added = self._grow(optimise, step.child("grow"))
            numbers = {"added": added, "removed": removed}
            self._forget()
        return {"gaussians": len(self), **numbers}

    def _watch(self, out: RenderOutput) -> None:
        """Add this step's screen gradients to the growth statistics."""
        if out.screen is None:
            raise ValueError("Growth needs to know where the Gaussians fell, but this renderer returned no screen.")
        gradient = out.screen.means2d.grad
        if gradient is None:
            return  # The loss did not depend on this picture.
        visible = out.screen.radii > 0  # [B, M]
        self._gradient += (gradient.norm(dim=-1) * visible).sum(0)
        self._seen += visible.sum(0)

    def _adam(self, rates: Mapping[str, float]) -> None:
        """One step on every parameter that has a gradient."""
        self._steps += 1
        for name, parameter in self.named_parameters():
            adam_(parameter, self._moments[f"first.{name}"], self._moments[f"second.{name}"], self._steps, rates[name])

    def _prune(self, optimise: GaussianOptimise) -> int:
        """Remove Gaussians weaker than `prune_opacity`, the weaker half of all at most; returns how many."""
        opacities = self.opacities
        keep = opacities >= optimise.prune_opacity
        keep[opacities.topk((len(self) + 1) // 2).indices] = True
        removed = len(self) - int(keep.sum())
        if removed:
            self._replace({name: tensor[keep] for name, tensor in self._columns().items()})
            self._gradient, self._seen = self._gradient[keep], self._seen[keep]
        return removed

    def _grow(self, optimise: GaussianOptimise, step: Step) -> int:
        """Clone or split, by size, the Gaussians with the largest mean screen gradient; returns how many."""
        score = self._gradient / self._seen.clamp(min=1)
        wanted = min(math.ceil(optimise.grow_share * len(self)), optimise.max_count - len(self))
        wanted = min(wanted, int((score > 0).sum()))
        if wanted <= 0:
            return 0
        rows = score.topk(wanted).indices
        large = (self.scales[rows].amax(dim=-1) > SPLIT_SCALE)[:, None]
        offset = step.normal("offset", self.means.detach()[None, rows])[0] * self.scales[rows]
        offset = torch.einsum("nij,nj->ni", self.rotations[rows], offset) * large
        opacities = self.opacities[rows]
        halved = 1 - (1 - opacities).sqrt()  # two in one place then cover what one covered
        parent = {
            "means": self.means[rows] - offset,
            "log_scales": self.log_scales[rows] - math.log(SHRINK) * large,
            "quats": self.quats[rows],
            "opacity_logits": torch.where(large[:, 0], self.opacity_logits[rows], halved.logit()),
            "colour_logits": self.colour_logits[rows],
        }
        child = {**parent, "means": self.means[rows] + offset}
        columns = self._columns()
        for name, tensor in columns.items():
            # Both halves are new to the optimiser, so both start without moments.
            first = parent.get(name, torch.zeros_like(tensor[rows]))
            second = child.get(name, first)
            tensor = tensor.clone()
            tensor[rows] = first
            columns[name] = torch.cat([tensor, second])
        self._replace(columns)
        return wanted

    def _columns(self) -> dict[str, Tensor]:
        """Everything that has one row per Gaussian and outlives a moment of growth: parameters and moments."""
        return {**{name: parameter.detach() for name, parameter in self.named_parameters()}, **self._moments}

    def _replace(self, columns: Mapping[str, Tensor]) -> None:
        """Take over another set of Gaussians with their moments."""
        for name in WIDTHS:
            setattr(self, name, nn.Parameter(columns[name].clone(), requires_grad=getattr(self, name).requires_grad))
        self._moments = {name: tensor.clone() for name, tensor in columns.items() if name not in WIDTHS}

    def state(self) -> dict[str, Tensor]:
        """Parameters; after `prepare` also moments ("first.*", "second.*"), "steps", "events" and growth statistics."""
        tensors = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}
        if self._optimise is None:
            return tensors
        return {
            **tensors,
            **{name: tensor.clone() for name, tensor in self._moments.items()},
            "steps": torch.tensor(self._steps),
            "events": torch.tensor(self._events),
            "grow.gradient": self._gradient.clone(),
            "grow.seen": self._seen.clone(),
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; the number of Gaussians may differ from the present one.

        Without `prepare` only the parameters are taken. Raises ValueError for missing tensors, wrong shapes and numbers
        that are not finite.
        """
        like = self.means.detach()
        wanted = list(WIDTHS)
        if self._optimise is not None:
            wanted += [*self._moments, "steps", "events", "grow.gradient", "grow.seen"]
        missing = [name for name in wanted if name not in tensors]
        if missing:
            raise ValueError(f'The saved Gaussians lack "{missing[0]}".')
        taken = {name: tensors[name].to(like) for name in WIDTHS}
        _check_parameters(taken)
        if self._optimise is None:
            self._replace({**taken, **self._moments})
            return
        moments = {name: tensors[name].to(like) for name in self._moments}
        statistics = {name: tensors[name].to(like).clone() for name in ("grow.gradient", "grow.seen")}
        for name, tensor in {**moments, **statistics}.items():
            owner = name.split(".")[1]
            expected = taken[owner].shape if owner in taken else taken["means"].shape[:1]
            _check_tensor(name, tensor, expected)
        self._replace({**taken, **moments})
        self._gradient, self._seen = statistics["grow.gradient"], statistics["grow.seen"]
        self._steps, self._events = int(tensors["steps"]), int(tensors["events"])


def rotation_matrix(quats: Float[Tensor, "M 4"]) -> Float[Tensor, "M 3 3"]:
    """Rotation matrices of quaternions wxyz of any length but 0."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def _check_parameters(tensors: Mapping[str, Tensor]) -> None:
    count = tensors["means"].shape[0] if tensors["means"].ndim else 0
    if count == 0:
        raise ValueError("There must be at least one Gaussian.")
    for name, width in WIDTHS.items():
        _check_tensor(name, tensors[name], torch.Size([count] if width is None else [count, width]))


def _check_tensor(name: str, tensor: Tensor, shape: torch.Size) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers, given {tensor.dtype}.")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}, given {list(tensor.shape)}.")
    if not torch.isfinite(tensor).all():
        rows = int((~torch.isfinite(tensor)).reshape(len(tensor), -1).any(-1).sum())
        raise ValueError(f"{name} holds numbers that are not finite, in {rows} of {len(tensor)} Gaussians.")
