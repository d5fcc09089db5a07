"""Regularisers: (representation, render, step) -> a scalar to be made small, by name.

| name               | equation                                                  | makes                           |
|--------------------|-----------------------------------------------------------|---------------------------------|
| opacity            | mean of -a log a - (1 - a) log (1 - a), a = alpha         | pixels full or empty, no haze   |
| sparsity           | mean of sqrt(alpha^2 + 0.01)                              | less of everything              |
| scale              | mean of the elements' three scales                        | small elements                  |
| anisotropy         | mean of max(0, longest / shortest scale - 10)             | no needles (PhysGaussian, 2023) |
| depth_tv           | mean |difference of neighbouring depths| x both alphas     | smooth surfaces                 |
| laplacian          | mean |mean of a vertex's neighbours - vertex|^2           | meshes with even triangles      |
| normal_consistency | mean of 1 - cos of the angle between adjacent triangles   | meshes without creases          |
| orientation        | mean over rays of sum w max(0, normal . ray)^2            | no density that faces away      |
| displacement       | mean |offset of a vertex|^2                               | meshes near where they began    |
| symmetry           | mean |one side - the other|^2 of offsets and of albedo    | heads alike on both sides       |
| texture_tv         | mean |difference of neighbouring texels' albedo|          | textures without noise          |
| tv                 | mean |difference of neighbouring raw numbers| of a grid   | fields without noise            |
| eikonal            | mean (|gradient of the signed distances| - 1)^2           | distances that are distances    |

A weight is a number or a schedule over progress. The gradient of a score is summed over pixels and these are means, so
useful weights are far from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .core import RenderOutput, Representation, Step
from .schedules import Number, value

LONGEST_TO_SHORTEST = 10.0


def opacity(rep: Representation, out: RenderOutput, step: Step) -> Tensor:
    """Mean binary entropy of alpha, in nats."""
    a = out.alpha.clamp(1e-5, 1 - 1e-5)
    return -(a * a.log() + (1 - a) * (1 - a).log()).mean()


def sparsity(rep: Representation, out: RenderOutput, step: Step) -> Tensor:
    """Mean alpha, smoothed near 0 so that its gradient fades there."""
    return (out.alpha**2 + 0.01).sqrt().mean()


def scale(rep: Representation, out: RenderOutput, step: Step) -> Tensor:
    """Mean scale of the elements, in world units."""
    return _scales(rep, "scale").mean()


def anisotropy(rep: Representation, out: RenderOutput, step: Step) -> Tensor:
    """How far, on average, the longest axis exceeds `LONGEST_TO_SHORTEST` times the shortest."""
    scales = _scales(rep, "anisotropy")
    ratio = scales.amax(dim=-1) / scales.amin(dim=-1).clamp_min(1e-8)
    return (ratio - LONGEST_TO_SHORTEST).clamp_min(0).mean()


def depth_tv(rep: Representation, out: RenderOutput, step: Step) -> Tensor:
    """Total variation of depth inside the object, in world units per pixel."""
    depth, alpha = out.depth, out.alpha.detach()
    across = (depth[:, :, 1:] - depth[:, :, :-1]).abs() * alpha[:, :, 1:] * alpha[:, :, :-1]
    down = (depth[:, 1:] - depth[:, :-1]).abs() * alpha[:, 1:] * alpha[:, :-1]
    return across.mean() + down.mean()


def laplacian(rep: Representation, out: RenderOutput, step: Step) -> Tensor:
    """Mean squared length of the uniform Laplacian of a mesh, in world units squared."""
    return _of_mesh(rep, "laplacian", "laplacian").square().sum(dim=-1).mean()


def normal_consistency(rep: Representation, out: RenderOutput, step: Step) -> Tensor:
    """Mean of 1 - cosine over the pairs of triangles that share an edge; 0 where there is no pair."""
    bends = _of_mesh(rep, "bends", "normal_consistency")
    return bends.sum() / max(len(bends), 1)


def displacement(rep: Representation, out: RenderOutput, step: Step) -> Tensor:
    """Mean squared distance of a mesh's vertices from where they began, in world units squared."""
    offsets = getattr(rep, "offsets", None)
    if not isinstance(offsets, Tensor):
        raise ValueError(f'The regulariser "displacement" needs a mesh, and a {type(rep).__name__} is none.')
    return offsets.square().sum(dim=-1).mean()


def symmetry(rep: Representation, out: RenderOutput, step: Step) -> Tensor:
    """Mean squared difference of the two sides of a head: of albedo in [0, 1], and of offsets in world units."""
    found: Callable[[], Tensor] | None = getattr(rep, "asymmetry", None)
    if found is None:
        raise ValueError(f'The regulariser "symmetry" needs a head template, and a {type(rep).__name__} is none.')
    return found()


def texture_tv(rep: Representation, out: RenderOutput, step: Step) -> Tensor:
    """Total variation of a texture's albedo in [0, 1]: the sum over its rows and columns."""
    logits = getattr(rep, "albedo_logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(f'The regulariser "texture_tv" needs a textured mesh, and a {type(rep).__name__} is none.')
    albedo = logits.sigmoid()
    return albedo.diff(dim=0).abs().mean() + albedo.diff(dim=1).abs().mean()


def orientation(rep: Representation, out: RenderOutput, step: Step) -> Tensor:
    """How much of what is seen in a volume faces away from the camera (Ref-NeRF, Verbin et al. 2022)."""
    if out.away is None:
        raise ValueError(f'The regulariser "orientation" needs a volume, and a {type(rep).__name__} is drawn as none.')
    return out.away.mean()


def tv(rep: Representation, out: RenderOutput, step: Step) -> Tensor:
    """Total variation of a field's raw numbers, density and colours alike: the sum over the three axes."""
    grid = getattr(rep, "grid", None)
    if not isinstance(grid, Tensor):
        raise ValueError(f'The regulariser "tv" needs a field, and a {type(rep).__name__} is none.')
    return torch.stack([grid.diff(dim=axis).abs().mean() for axis in range(3)]).sum()


def eikonal(rep: Representation, out: RenderOutput, step: Step) -> Tensor:
    """How far a grid of signed distances is from distances, whose gradient is 1 everywhere; in the middles of cells."""
    sdf = getattr(rep, "sdf", None)
    if not isinstance(sdf, Tensor):
        raise ValueError(f'The regulariser "eikonal" needs signed distances, and a {type(rep).__name__} has none.')
    length = 2 / (len(sdf) - 1)
    slopes = [_mean_of_pairs(sdf.diff(dim=axis), (axis + 1) % 3, (axis + 2) % 3) / length for axis in range(3)]
    square = torch.stack(slopes).square().sum(dim=0)
    # The root has no gradient where distances do not change at all.
    return (square.clamp_min(torch.finfo(square.dtype).tiny).sqrt() - 1).square().mean()


def _mean_of_pairs(values: Tensor, *axes: int) -> Tensor:
    """The means of neighbours along axes."""
    for axis in axes:
        values = (values.narrow(axis, 1, values.shape[axis] - 1) + values.narrow(axis, 0, values.shape[axis] - 1)) / 2
    return values


def _of_mesh(rep: Representation, method: str, name: str) -> Tensor:
    found: Callable[[], Tensor] | None = getattr(rep, method, None)
    if found is None:
        raise ValueError(f'The regulariser "{name}" needs a mesh, and a {type(rep).__name__} is none.')
    return found()


def _scales(rep: Representation, name: str) -> Tensor:
    scales = getattr(rep, "scales", None)
    if not isinstance(scales, Tensor):
        raise ValueError(f'The regulariser "{name}" needs elements with scales; a {type(rep).__name__} has none.')
    return scales


LOSSES: dict[str, Callable[[Representation, RenderOutput, Step], Tensor]] = {
    "opacity": opacity,
    "sparsity": sparsity,
    "scale": scale,
    "anisotropy": anisotropy,
    "depth_tv": depth_tv,
    "laplacian": laplacian,
    "normal_consistency": normal_consistency,
    "displacement": displacement,
    "symmetry": symmetry,
    "texture_tv": texture_tv,
    "orientation": orientation,
    "tv": tv,
    "eikonal": eikonal,
}


@dataclass(frozen=True)
class Losses:
    """The weighted sum of named regularisers; without any it is 0."""

    weights: Mapping[str, Number] = field(default_factory=dict, metadata={"inline": True})

    def __post_init__(self) -> None:
        for name in self.weights:
            if name not in LOSSES:
                raise ValueError(f'There is no regulariser "{name}"; known are: {", ".join(LOSSES)}.')

    def __call__(self, rep: Representation, out: RenderOutput, step: Step) -> Tensor:
        total = torch.zeros((), device=out.rgb.device, dtype=out.rgb.dtype)
        for name, weight in self.weights.items():
            total = total + value(weight, step.progress) * LOSSES[name](rep, out, step)
        return total
