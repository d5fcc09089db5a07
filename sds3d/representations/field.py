"""A radiance field on a dense grid: density and colour at the points of a cube, and its optimiser and occupancy.

Between the points everything is interpolated linearly in each direction before it is activated, which gives sharp
surfaces on a coarse grid (DVGO, Sun et al. 2022). With the four raw numbers (x, r, g, b) of a place,

    density = 25 softplus(x) per world unit,    colour = sigmoid((r, g, b)).

Both are monotone, so the densest place of a cell is one of its corners: a cell whose corners are all nearly empty can
be skipped without a look inside. Such cells are found anew every few steps, and their neighbours are drawn as well, so
that the object can grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool3d, softplus

from ..core import RenderOutput, Representation, Step
from ..schedules import Number, Ramp, value
from .adam import adam_

DENSITY_SCALE = 25.0  # per world unit: at x = 3 a cell of a grid of 64 points takes nine tenths of the light
EMPTY_RAW = -9.0  # x of empty space: half a percent of the light is lost across the whole cube, and Adam can still grow
MIN_DEPTH = 1e-3  # optical depth of a cell's side below which it is empty
LARGEST = 256  # points a side; four numbers, two moments and a gradient of each take a gigabyte


@dataclass(frozen=True)
class FieldOptimise:
    """Rates of Adam, and when the grid becomes finer.

    density, colours: learning rates, numbers or schedules over progress, of the raw numbers. resolution: points a side
    from progress `refine_at` on, for a grid that is coarser. occupancy_steps: steps between two looks for empty cells.
    """

    density: Number = Ramp(4e-1, 4e-2, curve="exponential")
    colours: Number = Ramp(2e-1, 2e-2, curve="exponential")
    resolution: int = 64
    refine_at: float = 0.3
    occupancy_steps: int = 16

    def __post_init__(self) -> None:
        if not 2 <= self.resolution <= LARGEST:
            raise ValueError(f"resolution must lie in [2, {LARGEST}], given {self.resolution}.")
        if not 0 <= self.refine_at <= 1:
            raise ValueError(f"refine_at is a progress in [0, 1], given {self.refine_at}.")
        if self.occupancy_steps < 1:
            raise ValueError(f"occupancy_steps must be at least 1, given {self.occupancy_steps}.")


class Field(Representation):
    """R points a side in the cube [-1, 1]^3, with the raw numbers (x, r, g, b) of each side by side.

    grid: [R, R, R, 4] along x, y and z. occupied: [R - 1, R - 1, R - 1], false in cells that are not drawn and get no
    gradient.

    Raises ValueError for a wrong shape or numbers that are not finite; TypeError for other dtypes than floating point.
    """

    grid: Float[Tensor, "R R R 4"]
    occupied: Bool[Tensor, "C C C"]

    def __init__(self, grid: Float[Tensor, "R R R 4"]) -> None:
        super().__init__()
        _check("grid", grid)
        self.grid = nn.Parameter(grid.detach().clone())
        self.register_buffer("occupied", find_occupied(self.grid))
        self._optimise: FieldOptimise | None = None
        self._moments: dict[str, Tensor] = {}
        self._steps = 0

    @property
    def resolution(self) -> int:
        """Points a side."""
        return self.grid.shape[0]

    @property
    def density(self) -> Float[Tensor, "R R R"]:
        """At the points, per world unit."""
        return DENSITY_SCALE * softplus(self.grid[..., 0])

    @property
    def rgb(self) -> Float[Tensor, "R R R 3"]:
        """Colours at the points, in (0, 1)."""
        return self.grid[..., 1:].sigmoid()

    def refresh(self) -> None:
        """Look for empty cells now; for those who write into the grid by hand."""
        self.occupied = find_occupied(self.grid)

    def prepare(self, optimise: object, step: Step) -> None:
        """Start Adam anew, with the numbers of a `FieldOptimise`."""
        if not isinstance(optimise, FieldOptimise):
            raise TypeError(f"A field is optimised by a FieldOptimise, given {type(optimise).__name__}.")
        self._optimise, self._steps = optimise, 0
        self._moments = {name: torch.zeros_like(self.grid.detach()) for name in ("first", "second")}
        self.refresh()

    @torch.no_grad()
    def update(self, out: RenderOutput, step: Step) -> Mapping[str, float]:
        """One Adam step on the gradient at hand; then a finer grid and a new occupancy where they are due.

        Returns the resolution and the share of occupied cells. Raises ValueError when `prepare` was not called.
        """
        optimise = self._optimise
        if optimise is None:
            raise ValueError("This field has no optimiser yet: call prepare() first.")
        self._steps += 1
        density, colours = value(optimise.density, step.progress), value(optimise.colours, step.progress)
        rates = self.grid.new_tensor([density, colours, colours, colours])
        adam_(self.grid, self._moments["first"], self._moments["second"], self._steps, rates)
        finer = self.resolution < optimise.resolution and step.progress >= optimise.refine_at
        if finer:
            self._refine(optimise.resolution)
        if finer or self._steps % optimise.occupancy_steps == 0:
            self.refresh()
        return {"resolution": self.resolution, "occupied": float(self.occupied.float().mean())}

    def _refine(self, resolution: int) -> None:
        """The same field on a finer grid. The moments shrink with the cells, because the gradients will."""
        share = ((self.resolution - 1) / (resolution - 1)) ** 3
        self._moments = {
            "first": share * resampled(self._moments["first"], resolution),
            "second": share**2 * resampled(self._moments["second"], resolution),
        }
        self.grid = nn.Parameter(resampled(self.grid.detach(), resolution), requires_grad=self.grid.requires_grad)

    def state(self) -> dict[str, Tensor]:
        """The grid and the occupancy; after `prepare` also the moments "first" and "second" and the count "steps"."""
        tensors = {"grid": self.grid.detach().clone(), "occupied": self.occupied.clone()}
        if self._optimise is None:
            return tensors
        moments = {name: tensor.clone() for name, tensor in self._moments.items()}
        return {**tensors, **moments, "steps": torch.tensor(self._steps)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; the resolution may differ from the present one.

        Without `prepare` only the grid and the occupancy are taken. Raises ValueError for missing tensors, wrong shapes
        and numbers that are not finite.
        """
        wanted = ["grid", "occupied"] + ([*self._moments, "steps"] if self._optimise is not None else [])
        missing = [name for name in wanted if name not in tensors]
        if missing:
            raise ValueError(f'The saved field lacks "{missing[0]}".')
        like = self.grid.detach()
        grid, occupied = tensors["grid"].to(like), tensors["occupied"].to(like.device, torch.bool)
        _check("grid", grid)
        cells = [grid.shape[0] - 1] * 3
        if list(occupied.shape) != cells:
            raise ValueError(f"occupied must have the shape {cells}, given {list(occupied.shape)}.")
        if self._optimise is not None:
            moments = {name: tensors[name].to(like).clone() for name in self._moments}
            for name, tensor in moments.items():
                _check(name, tensor)
                if tensor.shape != grid.shape:
                    raise ValueError(f"{name} must have the grid's shape {list(grid.shape)}.")
            self._moments, self._steps = moments, int(tensors["steps"])
        self.grid = nn.Parameter(grid.clone(), requires_grad=self.grid.requires_grad)
        self.occupied = occupied.clone()


@torch.no_grad()
def find_occupied(grid: Float[Tensor, "R R R 4"]) -> Bool[Tensor, "C C C"]:
    """The cells whose densest corner exceeds `MIN_DEPTH` along a side, and the 26 neighbours of each."""
    depth = DENSITY_SCALE * 2 / (grid.shape[0] - 1) * softplus(grid[..., 0])
    densest = max_pool3d(depth[None, None], kernel_size=2, stride=1)
    return (max_pool3d(densest, kernel_size=3, stride=1, padding=1) > MIN_DEPTH)[0, 0]


def resampled(grid: Float[Tensor, "R R R c"], resolution: int) -> Float[Tensor, "N N N c"]:
    """The same field, linear between its points, at the points of another resolution."""
    channels_first = grid.permute(3, 0, 1, 2)[None]
    finer = interpolate(channels_first, size=[resolution] * 3, mode="trilinear", align_corners=True)
    return finer[0].permute(1, 2, 3, 0).contiguous()


def points(resolution: int, like: Tensor) -> Float[Tensor, "R R R 3"]:
    """The places of a grid's points in the world, in the dtype and on the device of `like`."""
    ticks = torch.linspace(-1, 1, resolution, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), dim=-1)


@dataclass(frozen=True)
class Ball:
    """A soft grey ball: density (1 - |p|^2 / radius^2) inside, empty outside.

    radius: in world units. density: in the middle, per world unit. resolution: points a side to begin with.
    """

    radius: float = 0.6
    density: float = 4.0
    resolution: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.radius <= 1:
            raise ValueError(f"radius must lie in (0, 1], the object's sphere, given {self.radius}.")
        if not 0 < self.density <= 1000:
            raise ValueError(f"density must lie in (0, 1000] per world unit, given {self.density}.")
        if not 2 <= self.resolution <= LARGEST:
            raise ValueError(f"resolution must lie in [2, {LARGEST}], given {self.resolution}.")

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        square = points(self.resolution, torch.zeros(())).square().sum(dim=-1)
        depth = self.density / DENSITY_SCALE * (1 - square / self.radius**2).clamp_min(0)
        raw = depth.expm1().log().clamp_min(EMPTY_RAW)  # the inverse of softplus
        return Field(torch.cat([raw[..., None], torch.zeros(*raw.shape, 3)], dim=-1))

    def blank(self, previous: Representation | None) -> Representation:
        """A field of one cell."""
        return Field(torch.zeros(2, 2, 2, 4))


def _check(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers, given {tensor.dtype}.")
    sides = tensor.shape[:-1]
    if tensor.ndim != 4 or tensor.shape[-1] != 4 or len(set(sides)) != 1 or not 2 <= sides[0] <= LARGEST:
        raise ValueError(
            f"{name} must have the shape [R, R, R, 4] with R in [2, {LARGEST}], given {list(tensor.shape)}."
        )
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).any(-1).sum())
        raise ValueError(f"{name} holds numbers that are not finite, in {count} points.")
