"""A radiance field on hashed grids of many resolutions (Instant-NGP, Mueller et al. 2022), for CUDA and fine detail.

A place is looked up in L grids over the cube [-1, 1]^3, from coarse to fine. Each gives `features` numbers, linear
between its points; a small network makes the four raw numbers (x, r, g, b) of a `Field` from all of them,

    raw = relu(features . inner) . outer,    x += the raw density of a soft ball,

and density and colour are those of a `Field`. The grids lie one after the other in one table. A grid with more points
than 2^log2_size shares its entries among them by a hash of the three indices; what collides in one grid does not in
the others, and the network sorts it out.

The network is not monotone, so corners do not bound a cell as they do in a `Field`. Occupancy is looked for at a place
drawn anew in each cell, and remembered: a cell keeps its largest depth, which fades with each look.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import max_pool3d, softplus

from ..core import RenderOutput, Representation, Step
from ..schedules import Number, Ramp, value
from .adam import adam_
from .field import DENSITY_SCALE, EMPTY_RAW

HIDDEN = 32  # units of the network
SMALL = 1e-4  # the table's entries begin evenly in +- this, so that the start is the ball alone
FADE = 0.6  # of a cell's depth, with each look: after 9 looks that found nothing, a depth of 1 is forgotten
MIN_DEPTH = 1e-2  # optical depth of a cell's side below which it is empty; the network leaves a haze everywhere
PRIMES = (1, 2654435761, 805459861)  # of the hash, one an axis, as in the paper
CHUNK = 2**17  # places that are looked at together
FIRST = "first "  # before a parameter's name: Adam's first moment of it
SECOND = "second "


@dataclass(frozen=True)
class HashOptimise:
    """Rates of Adam: numbers, or schedules over progress, of the table and of the network.

    occupancy_steps: steps between two looks for empty cells.
    """

    table: Number = Ramp(1e-1, 1e-2, curve="exponential")
    network: Number = Ramp(1e-2, 1e-3, curve="exponential")
    occupancy_steps: int = 16

    def __post_init__(self) -> None:
        if self.occupancy_steps < 1:
            raise ValueError(f"occupancy_steps must be at least 1, given {self.occupancy_steps}.")


@dataclass(frozen=True)
class HashBall:
    """A soft grey ball as a `HashField`: density (1 - |p|^2 / radius^2) inside, empty outside.

    radius: in world units. density: in the middle, per world unit. levels: grids; base, finest: points a side of the
    coarsest and of the finest, in equal ratios between. log2_size: of the most entries that a grid may have; features:
    numbers an entry. cells: a side, of the occupancy.
    """

    radius: float = 0.6
    density: float = 4.0
    levels: int = 16
    log2_size: int = 19
    features: int = 2
    base: int = 16
    finest: int = 2048
    cells: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.radius <= 1:
            raise ValueError(f"radius must lie in (0, 1], the object's sphere, given {self.radius}.")
        if not 0 < self.density <= 1000:
            raise ValueError(f"density must lie in (0, 1000] per world unit, given {self.density}.")
        for name, low, high in (("levels", 1, 32), ("log2_size", 3, 24), ("features", 1, 8), ("cells", 1, 256)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in [{low}, {high}], given {getattr(self, name)}.")
        if not 2 <= self.base <= self.finest <= 2**14:
            raise ValueError(
                f"base and finest are points a side with 2 <= base <= finest <= {2**14}, "
                f"given {self.base} and {self.finest}."
            )

    @property
    def sides(self) -> list[int]:
        """Points a side of each level."""
        ratio = (self.finest / self.base) ** (1 / max(self.levels - 1, 1))
        return [round(self.base * ratio**level) for level in range(self.levels)]

    @property
    def entries(self) -> list[int]:
        """Of each level in the table."""
        return [min(side**3, 2**self.log2_size) for side in self.sides]

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        noise, width = step.child("start"), self.levels * self.features
        table = noise.normal("table", torch.empty(1, sum(self.entries), self.features))[0]
        inner = noise.normal("inner", torch.empty(1, width, HIDDEN))[0]
        outer = noise.normal("outer", torch.empty(1, HIDDEN, 4))[0]
        even = 2 * torch.special.ndtr(table) - 1
        return HashField(self, SMALL * even, (2 / width) ** 0.5 * inner, (1 / HIDDEN) ** 0.5 * outer)

    def blank(self, previous: Representation | None) -> Representation:
        """The ball alone."""
        width = self.levels * self.features
        table = torch.zeros(sum(self.entries), self.features)
        return HashField(self, table, torch.zeros(width, HIDDEN), torch.zeros(HIDDEN, 4))


class HashField(Representation):
    """A table of features, a network that reads it, and a ball that it is added to.

    form: the ball, and how the table is laid out. table: [entries of all levels, features]; a level that is not hashed
    has its points with z fastest. inner: [levels x features, H]. outer: [H, 4], to (x, r, g, b). peak: [C, C, C], the
    largest optical depth that was seen in each cell, along its side, lately. occupied: [C, C, C], false in cells that
    are not drawn and get no gradient.

    Raises ValueError for wrong shapes or numbers that are not finite; TypeError for other dtypes than floating point.
    """

    table: Float[Tensor, "E f"]
    inner: Float[Tensor, "w h"]
    outer: Float[Tensor, "h 4"]
    peak: Float[Tensor, "C C C"]
    occupied: Bool[Tensor, "C C C"]
    sides: Tensor
    begins: Tensor

    def __init__(
        self, form: HashBall, table: Float[Tensor, "E f"], inner: Float[Tensor, "w h"], outer: Float[Tensor, "h 4"]
    ) -> None:
        super().__init__()
        self.form = form
        given = {"table": table, "inner": inner, "outer": outer}
        hidden = outer.shape[0]
        wanted = [(sum(form.entries), form.features), (form.levels * form.features, hidden), (hidden, 4)]
        for (name, tensor), shape in zip(given.items(), wanted, strict=True):
            _check(name, tensor, list(shape))
            self.register_parameter(name, nn.Parameter(tensor.detach().clone()))
        self.register_buffer("sides", torch.tensor(form.sides), persistent=False)
        begins = torch.tensor([0, *itertools.accumulate(form.entries)][:-1])
        self.register_buffer("begins", begins, persistent=False)
        self.register_buffer("peak", torch.zeros([form.cells] * 3, dtype=table.dtype))
        self.register_buffer("occupied", torch.ones([form.cells] * 3, dtype=torch.bool))
        self._optimise: HashOptimise | None = None
        self._moments: dict[str, Tensor] = {}
        self._steps = 0
        self.refresh()

    def features(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n w"]:
        """Of all levels, the coarsest first, at places of the cube. Differentiable in the table and in the places."""
        sides = self.sides[:, None]
        place = (points[:, None] + 1) * ((sides - 1) / 2).to(points)
        cell = place.detach().long().clamp_min(0).minimum(sides - 2)
        high = place - cell
        x, y, z = torch.stack([1 - high, high]).unbind(-1)  # [2, n, levels] each
        found = points.new_zeros(len(points), self.form.levels, self.form.features)
        for i, j, k in itertools.product((0, 1), repeat=3):
            entry = self._entries(cell[..., 0] + i, cell[..., 1] + j, cell[..., 2] + k)
            found = found + (x[i] * y[j] * z[k])[..., None] * self.table[entry]
        return found.flatten(1)

    def _entries(self, i: Tensor, j: Tensor, k: Tensor) -> Tensor:
        """Where the table has the points (i, j, k) [n, levels] of each level."""
        size, a, b, c = 2**self.form.log2_size, *PRIMES
        exact = (i * self.sides + j) * self.sides + k
        hashed = ((i * a) ^ (j * b) ^ (k * c)) & (size - 1)
        return self.begins + torch.where(self.sides**3 <= size, exact, hashed)

    def raw(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
        """The numbers (x, r, g, b) at places of the cube, before they are activated."""
        made = (self.features(points) @ self.inner).relu() @ self.outer
        inside = 1 - points.square().sum(dim=-1) / self.form.radius**2
        least = softplus(points.new_tensor(EMPTY_RAW))  # what is clamped before the logarithm has a gradient of 0
        ball = (self.form.density / DENSITY_SCALE * inside).clamp_min(least).expm1().log()  # the inverse of softplus
        return torch.cat([made[:, :1] + ball[:, None], made[:, 1:]], dim=-1)

    def sample(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n 4"], Float[Tensor, "n 3"]]:
        """The raw numbers at places, and the gradient of x there, both differentiable in the field's parameters."""
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            raw = self.raw(points)
            (slope,) = torch.autograd.grad(raw[:, 0].sum(), points, create_graph=wanted)
        return raw if wanted else raw.detach(), slope

    @torch.no_grad()
    def refresh(self) -> None:
        """Look for empty cells in their middles and forget what was seen; for those who write parameters by hand."""
        self.peak = self._depths(torch.full_like(self.peak, 0.5)[..., None].expand(-1, -1, -1, 3))
        self._find_occupied()

    def _look(self, step: Step) -> None:
        """Look once into each cell, at a place that is the step's."""
        noise = step.child("occupancy").normal("look", self.peak.new_empty(1, *self.peak.shape, 3))[0]
        self.peak = torch.maximum(FADE * self.peak, self._depths(torch.special.ndtr(noise)))
        self._find_occupied()

    def _depths(self, shares: Float[Tensor, "C C C 3"]) -> Float[Tensor, "C C C"]:
        """Optical depths along the sides of cells, of the density at places given in shares of the sides."""
        count = self.form.cells
        ticks = torch.arange(count, device=shares.device)
        corners = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), dim=-1)
        points = ((corners + shares) * (2 / count) - 1).reshape(-1, 3)
        x = torch.cat([self.raw(chunk)[:, 0] for chunk in points.split(CHUNK)])
        return (2 / count * DENSITY_SCALE * softplus(x)).reshape(count, count, count)

    def _find_occupied(self) -> None:
        """The cells whose depth exceeds `MIN_DEPTH`, and the 26 neighbours of each."""
        self.occupied = (max_pool3d(self.peak[None, None], kernel_size=3, stride=1, padding=1) > MIN_DEPTH)[0, 0]

    def prepare(self, optimise: object, step: Step) -> None:
        """Start Adam anew, with the numbers of a `HashOptimise`."""
        if not isinstance(optimise, HashOptimise):
            raise TypeError(f"A hash field is optimised by a HashOptimise, given {type(optimise).__name__}.")
        self._optimise, self._steps = optimise, 0
        self._moments = {
            moment + name: torch.zeros_like(parameter.detach())
            for name, parameter in self.named_parameters()
            for moment in (FIRST, SECOND)
        }
        self.refresh()

    @torch.no_grad()
    def update(self, out: RenderOutput, step: Step) -> Mapping[str, float]:
        """One Adam step on the gradient at hand; then a look for empty cells where it is due.

        Returns the share of occupied cells. Raises ValueError when `prepare` was not called.
        """
        optimise = self._optimise
        if optimise is None:
            raise ValueError("This field has no optimiser yet: call prepare() first.")
        self._steps += 1
        for name, parameter in self.named_parameters():
            rate = value(optimise.table if name == "table" else optimise.network, step.progress)
            adam_(parameter, self._moments[FIRST + name], self._moments[SECOND + name], self._steps, rate)
        if self._steps % optimise.occupancy_steps == 0:
            self._look(step)
        return {"occupied": float(self.occupied.float().mean())}

    def state(self) -> dict[str, Tensor]:
        """Table, network and peaks; after `prepare` also the moments "first NAME" and "second NAME", and "steps"."""
        tensors = {name: tensor.detach().clone() for name, tensor in self._saved().items()}
        return tensors if self._optimise is None else {**tensors, "steps": torch.tensor(self._steps)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`, for a field of the same form.

        Without `prepare` only table, network and peaks are taken. Raises ValueError for missing tensors, wrong shapes
        and numbers that are not finite.
        """
        saved = self._saved()
        missing = [name for name in [*saved, *(["steps"] if self._optimise else [])] if name not in tensors]
        if missing:
            raise ValueError(f'The saved hash field lacks "{missing[0]}".')
        for name, mine in saved.items():
            _check(name, tensors[name], list(mine.shape))
        with torch.no_grad():
            for name, mine in saved.items():
                mine.copy_(tensors[name])
            self._find_occupied()
        if self._optimise is not None:
            self._steps = int(tensors["steps"])

    def _saved(self) -> dict[str, Tensor]:
        """What a checkpoint holds, besides the count of steps."""
        return {**dict(self.named_parameters()), "peak": self.peak, **self._moments}


def _check(name: str, tensor: Tensor, shape: list[int]) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers, given {tensor.dtype}.")
    if list(tensor.shape) != shape:
        raise ValueError(f"{name} must have the shape {shape} of the field's form, given {list(tensor.shape)}.")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds {int((~torch.isfinite(tensor)).sum())} numbers that are not finite.")
