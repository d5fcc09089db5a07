"""Head templates that a user brings: a mesh and which of its points are the 68 landmarks.

    load("head.obj", "landmarks.json")      any mesh, whose vertices keep the file's order
    load("flame.npz", "landmarks.json")     arrays `v_template` [V, 3] and `f` [F, 3], as FLAME and SMPL-X name them
    ict("ICT-FaceKit/FaceXModel")           ICT-FaceKit, whose landmarks are known, with its expressions

A landmark list is JSON: 68 numbers of vertices from 0 on, or {"faces": [68], "weights": [68, 3]}, in iBUG's order. The
mesh may have any size and lie anywhere: the similarity that brings its eyes, nose and mouth onto the measured ones
(Umeyama 1991) brings it into the world. MediaPipe's contours are carried over from our own template by the smooth warp
that takes our landmarks to its (biharmonic splines), and put where its surface is nearest.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .head import Identity, Template, head
from .head_points import Points, nearest, on_vertices
from .head_profile import LANDMARKS, UNIT_CM, to_cm, to_world
from .mesh import check_triangles

COUNT, INNER = 68, slice(17, 68)  # landmarks, and those that are not the jaw's line, which is different in every head
ORDER = "iBUG's order: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, mouth 48-67"
WORST_CM = 1.5  # root mean square of what is no face; faces differ by less than half of it
REACH = 0.98  # of the world's sphere
# fmt: off
ICT_LANDMARKS = (
    1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088, 3443,
    268, 493, 1914, 2044, 1401, 3615, 4240, 4114, 2734, 2509, 978, 4527, 4942, 4857, 1140, 2075, 1147, 4269, 3360,
    1507, 1542, 1537, 1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732,
    5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957, 5841, 5702, 5711, 5533, 6216, 6207, 6470, 5517, 5966,
)
# fmt: on
ICT_NEUTRAL = "generic_neutral_mesh.obj"
ICT_HALVES = ("browInnerUp", "cheekPuff")  # two files, one shape


@dataclass(frozen=True, kw_only=True)
class TemplateChoice:
    """The head template that a recipe means.

    template, landmarks: files of a template of one's own, see `load`. Without them it is the built-in head, of this
    identity.
    """

    template: str | None = None
    landmarks: str | None = None
    identity: Identity = field(default=Identity(), metadata={"unsaid": True})

    def __post_init__(self) -> None:
        if (self.template is None) != (self.landmarks is None):
            raise ValueError("template and landmarks go together: a mesh, and a list of its landmarks.")
        if self.template is not None and self.identity != Identity():
            raise ValueError("identity is of the built-in head; leave it out beside a template of your own.")

    def found(self) -> Template:
        """The template. Raises ValueError, in a sentence, for files that are missing or no template."""
        if self.template is None or self.landmarks is None:
            return head(self.identity)
        return load(self.template, self.landmarks)


@dataclass(frozen=True)
class _Read:
    """A mesh as its file has it: vertices, triangles, places of their corners, and displacements by name."""

    vertices: Tensor
    faces: Tensor
    uv: Tensor | None = None
    uv_faces: Tensor | None = None
    shapes: Mapping[str, Tensor] | None = None


def load(mesh: str | Path, landmarks: str | Path) -> Template:
    """A template of a mesh file (.obj, or .npz of arrays) and a list of landmarks.

    Of an .npz with `shapedirs` [V, 3, 400], as FLAME's, the last hundred are shapes, "expression0" and on. Raises
    ValueError, in a sentence, for files that are missing, damaged or of another kind, and for landmarks that are
    missing, out of range or no face.
    """
    path, listed = Path(mesh), Path(landmarks)
    for file in (path, listed):
        if not file.is_file():
            raise ValueError(f"There is no file {file}; a template is a mesh file and a list of its landmarks.")
    if path.suffix not in (".obj", ".npz"):
        raise ValueError(
            f"{path} is not a template that can be read: landmarks are numbers of its vertices, so it must be an .obj, "
            "or an .npz of arrays without pickled objects."
        )
    read = _obj(path) if path.suffix == ".obj" else _npz(path)
    return _template(
        read, _listed(listed, path, read), str(path), "the template's own licence holds for what is made of it"
    )


def ict(folder: str | Path) -> Template:
    """ICT-FaceKit's head with those of its expressions that lie in the folder, by ARKit's names.

    Raises ValueError, in a sentence, for a folder without the neutral mesh and for files that do not fit it.
    """
    folder = Path(folder)
    if not (folder / ICT_NEUTRAL).is_file():
        raise ValueError(f"{folder} holds no {ICT_NEUTRAL}; ICT-FaceKit keeps it in its folder FaceXModel.")
    neutral = _obj(folder / ICT_NEUTRAL)
    shapes: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.obj")):
        if file.name == ICT_NEUTRAL or file.stem.startswith("identity"):
            continue
        moved = _vertices(file)
        if moved.shape != neutral.vertices.shape:
            raise ValueError(f"{file} has {len(moved)} vertices, and {ICT_NEUTRAL} has {len(neutral.vertices)}.")
        name = file.stem.replace("_L", "Left").replace("_R", "Right")
        whole = name.removesuffix("Left").removesuffix("Right")
        name = whole if whole in ICT_HALVES else name
        shapes[name] = shapes.get(name, torch.zeros_like(moved)) + moved - neutral.vertices
    read = _Read(neutral.vertices, neutral.faces, neutral.uv, neutral.uv_faces, shapes)
    points = _at_vertices(ICT_LANDMARKS, str(folder / ICT_NEUTRAL), "ICT-FaceKit's list", read)
    return _template(read, points, str(folder), "ICT-FaceKit (MIT, (c) 2020 University of Southern California)")


def _template(read: _Read, landmarks: Points, name: str, licence: str) -> Template:
    """The template brought into the world by its landmarks. Raises ValueError where they are no face."""
    scale, turn, shift = similarity(landmarks.at(read.vertices, read.faces)[INNER], to_cm(LANDMARKS.double())[INNER])
    vertices = scale * read.vertices @ turn.T + shift
    found, measured = landmarks.at(vertices, read.faces), to_cm(LANDMARKS.double())
    away = float((found - measured)[INNER].square().sum(dim=1).mean().sqrt())
    if not away <= WORST_CM:
        raise ValueError(
            f"The landmarks of {name} are no face: brought to a head's size, they lie {away:.1f} cm off, "
            f"more than {WORST_CM:g} cm (root mean square). They must stand in {ORDER}, right as the subject has it."
        )
    world = to_world(vertices)
    fit = min(1.0, REACH / float(world.norm(dim=1).max()))
    displaced = {
        key: (fit * scale / UNIT_CM * moved @ turn.T)[:, [2, 0, 1]] for key, moved in (read.shapes or {}).items()
    }
    return Template(
        vertices=(fit * world).float(),
        faces=read.faces,
        uv=None if read.uv is None else read.uv.float(),
        uv_faces=read.uv_faces,
        shapes={key: moved.float() for key, moved in displaced.items()},
        landmarks=landmarks,
        contours=_carried(world, read.faces, to_world(found)),
        regions={},
        licence=licence,
    )


def similarity(
    points: Float[Tensor, "n 3"], targets: Float[Tensor, "n 3"]
) -> tuple[float, Float[Tensor, "3 3"], Float[Tensor, "3"]]:
    """Scale, rotation and shift that bring points nearest to their targets, in the least squares (Umeyama 1991)."""
    middle, wanted = points.mean(dim=0), targets.mean(dim=0)
    left, strength, right = torch.linalg.svd((targets - wanted).T @ (points - middle))
    proper = torch.ones_like(strength)
    proper[2] = torch.linalg.det(left) * torch.linalg.det(right)
    turn = left @ torch.diag(proper) @ right
    scale = float((strength * proper).sum() / (points - middle).square().sum().clamp(min=1e-30))
    return scale, turn, wanted - scale * turn @ middle


def _carried(vertices: Tensor, faces: Tensor, landmarks: Tensor) -> Points:
    """Our own template's contours on another surface, which has these landmarks."""
    ours = head()
    known = ours.landmarks.at(ours.vertices.double(), ours.faces)
    wanted = ours.contours.at(ours.vertices.double(), ours.faces)
    ones = torch.ones(len(known), 1, dtype=known.dtype)
    linear = torch.cat([ones, known], dim=1)  # [68, 4]
    whole = torch.cat([torch.cat([torch.cdist(known, known), linear], 1), torch.cat([linear.T, torch.zeros(4, 4)], 1)])
    weights = torch.linalg.lstsq(whole, torch.cat([landmarks, torch.zeros(4, 3)]).to(whole), driver="gelsd").solution
    basis = torch.cat([torch.cdist(wanted, known), torch.ones(len(wanted), 1, dtype=known.dtype), wanted], dim=1)
    face, shares = nearest(basis @ weights, vertices, faces)
    return Points(ours.contours.ids, face, shares.float())


def _listed(path: Path, mesh: Path, read: _Read) -> Points:
    """The landmarks that a JSON file lists. Raises ValueError."""
    try:
        told: Any = json.loads(path.read_text("utf-8"))
    except ValueError:
        raise ValueError(f"{path} is no JSON; {_wanted()}") from None
    if isinstance(told, list):
        return _at_vertices(told, str(mesh), str(path), read)
    if not isinstance(told, dict) or not {"faces", "weights"} <= set(told):
        raise ValueError(f"{path} lists no landmarks; {_wanted()}")
    faces = _whole(told["faces"], str(path), len(read.faces), f"triangle, but {mesh} has")
    try:
        weights = torch.tensor(told["weights"], dtype=torch.float64)
    except (TypeError, ValueError):
        weights = torch.zeros(0)
    if weights.shape != (COUNT, 3) or not ((weights >= 0).all() and ((weights.sum(dim=1) - 1).abs() < 1e-3).all()):
        raise ValueError(
            f"The weights of {path} must be {COUNT} rows of three shares that are not negative and add to 1."
        )
    return Points(tuple(range(COUNT)), faces, weights.float())


def _at_vertices(told: Sequence[Any], mesh: str, path: str, read: _Read) -> Points:
    vertices = _whole(told, path, len(read.vertices), f"vertex, but {mesh} has")
    used = torch.isin(vertices, read.faces)
    if not used.all():
        lost = int((~used).nonzero()[0])
        raise ValueError(
            f"Landmark {lost} of {path} is vertex {int(vertices[lost])} of {mesh}, which is in no triangle."
        )
    return on_vertices(tuple(range(COUNT)), vertices, read.faces)


def _whole(told: Any, path: str, count: int, what: str) -> Int[Tensor, "n"]:
    """68 whole numbers below a count. Raises ValueError."""
    if not isinstance(told, list | tuple) or len(told) != COUNT:
        given = f"{len(told)} landmarks" if isinstance(told, list | tuple) else "something else"
        raise ValueError(f"{path} lists {given}; there must be {COUNT}, in {ORDER}.")
    for i, number in enumerate(told):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
            kind, _, rest = what.partition(", ")
            raise ValueError(f"Landmark {i} of {path} is {kind} {number!r:.40}, {rest} {count}, counted from 0.")
    return torch.tensor(told)


def _wanted() -> str:
    return f'it must hold {COUNT} numbers of vertices, or {{"faces": [...], "weights": [...]}}, in {ORDER}.'


def _vertices(path: Path) -> Float[Tensor, "V 3"]:
    """The vertices of an .obj in its order. Raises ValueError."""
    rows = [line.split()[1:4] for line in path.read_bytes().splitlines() if line.startswith(b"v ")]
    try:
        table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    except ValueError:
        raise ValueError(f"{path} has a vertex that is not three numbers.") from None
    return torch.from_numpy(table)


def _obj(path: Path) -> _Read:
    """An .obj with its vertices in their order, and polygons cut into triangles. Raises ValueError."""
    vertices, places, corners = _vertices(path), [], []
    for line in path.read_bytes().splitlines():
        if line.startswith(b"vt "):
            places.append(line.split()[1:3])
        if line.startswith(b"f "):
            polygon = [[*corner.split(b"/"), b""][:2] for corner in line.split()[1:]]
            corners += [(polygon[0], polygon[i], polygon[i + 1]) for i in range(1, len(polygon) - 1)]
    try:
        table = [[[int(part or 0) for part in corner] for corner in triangle] for triangle in corners]
        faces = torch.tensor(table, dtype=torch.long).reshape(-1, 3, 2)
        uv = torch.from_numpy(np.array(places, dtype=np.float64).reshape(-1, 2))
    except ValueError:
        raise ValueError(f"{path} is damaged: a corner or a place in it is no number.") from None
    # Numbers count from 1, or backward from the end.
    ends = faces.new_tensor([len(vertices), len(uv)])
    whole = torch.where(faces < 0, faces + ends, faces - 1)
    textured = len(uv) > 0 and bool(((whole[..., 1] >= 0) & (whole[..., 1] < len(uv))).all())
    read = _Read(vertices, whole[..., 0], uv if textured else None, whole[..., 1] if textured else None)
    return _checked(read, path)


def _npz(path: Path) -> _Read:
    """FLAME's arrays. Raises ValueError, also for pickled objects, which could run code."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("v_template", "f", "shapedirs") if name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise ValueError(
            f"{path} cannot be read as arrays alone. Pickled objects are not opened, because they can run code: save "
            "v_template, f and shapedirs by numpy.savez."
        ) from None
    lost = [name for name in ("v_template", "f") if name not in arrays]
    if lost:
        raise ValueError(f'{path} lacks the array "{lost[0]}"; a template has v_template [V, 3] and f [F, 3].')
    vertices = torch.from_numpy(arrays["v_template"].astype(np.float64))
    faces = torch.from_numpy(arrays["f"].astype(np.int64))
    shapes: dict[str, Tensor] = {}
    if "shapedirs" in arrays:
        directions = torch.from_numpy(arrays["shapedirs"].astype(np.float64))
        if directions.ndim != 3 or directions.shape[:2] != vertices.shape:
            raise ValueError(f"shapedirs of {path} must be [{len(vertices)}, 3, n], given {list(directions.shape)}.")
        shapes = {f"expression{i}": directions[..., 300 + i] for i in range(max(directions.shape[2] - 300, 0))}
    return _checked(_Read(vertices, faces, shapes=shapes), path)


def _checked(read: _Read, path: Path) -> _Read:
    try:
        check_triangles(read.vertices, read.faces)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no mesh that can be drawn: {error}") from None
    return read
