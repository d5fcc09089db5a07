"""A mesh with blendshapes as binary glTF 2.0: morph targets with names, and clips of their weights.

Base and look are those of `glb`. Each target holds the displacements of positions and of unit normals at weight 1, of
which only the rows that are not 0 are written (sparse accessors): a face's shapes move little each. Names stand in the
mesh's `extras.targetNames`, as Blender, three.js and game engines read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Renderer
from ..files import write as write_file
from ..representations.clips import EXPRESSIONS, Clip
from ..representations.mesh import Mesh, Triangles
from ..representations.template_mesh import TemplateMesh
from ..representations.texture import TexturedMesh
from . import textures
from .glb import document
from .gltf import Buffer, read_glb, to_glb
from .placement import Similarity
from .rounding import float32
from .surfaces import from_y_up, to_y_up, whole_normals

NEAR = 1e-5  # how near a posed vertex that is read back lies to ours, in world units


@dataclass(frozen=True)
class Morphed:
    """What a file says: vertices at rest in our frame, displacements by name, and the clips."""

    vertices: Float[Tensor, "N 3"]
    shapes: dict[str, Float[Tensor, "N 3"]]
    clips: tuple[Clip, ...]


def encode(
    mesh: Triangles,
    shapes: Mapping[str, Float[Tensor, "V 3"]],
    clips: Sequence[Clip],
    renderer: Renderer,
    provenance: Mapping[str, str],
    name: str,
) -> dict[str, bytes]:
    """One file. shapes: displacements of the mesh's vertices at weight 1, in world units.

    Raises TypeError for another representation than a mesh, ValueError for no shapes, for those of another mesh, and
    for clips of shapes that are not there.
    """
    _check_shapes(mesh, shapes, clips)
    buffer = Buffer()
    whole = document(mesh, renderer, buffer, name)
    rows = _rows(mesh)
    rest = whole_normals(mesh)[rows]
    targets = []
    for moved in shapes.values():
        posed = Mesh(mesh.vertices.detach() + moved.to(mesh.base), mesh.faces)
        place = float32(to_y_up(moved.double().cpu()[rows]))
        tilt = float32(to_y_up(whole_normals(posed)[rows] - rest))
        bounds = {"min": place.min(axis=0).tolist(), "max": place.max(axis=0).tolist()}
        targets.append({"POSITION": buffer.sparse(place, **bounds), "NORMAL": buffer.sparse(tilt)})
    whole["meshes"][0]["primitives"][0]["targets"] = targets
    whole["meshes"][0] |= {"weights": [0] * len(shapes), "extras": {"targetNames": list(shapes)}}
    if clips:
        whole["animations"] = [_animation(clip, list(shapes), buffer) for clip in clips]
    return {name: to_glb(whole, buffer, provenance)}


def _check_shapes(mesh: Triangles, shapes: Mapping[str, Tensor], clips: Sequence[Clip]) -> None:
    if not shapes:
        raise ValueError("There is no blendshape to write; a mesh without any is written as glb.")
    for name, moved in shapes.items():
        if moved.shape != mesh.base.shape or not moved.isfinite().all():
            given = "numbers that are not finite" if moved.shape == mesh.base.shape else f"{list(moved.shape)}"
            wanted = list(mesh.base.shape)
            raise ValueError(f'The blendshape "{name}" must hold finite displacements {wanted}, given {given}.')
    for clip in clips:
        lost = [name for name in clip.weights if name not in shapes]
        if lost:
            raise ValueError(f'The clip "{clip.name}" moves "{lost[0]}", and there is no such blendshape.')


def _rows(mesh: Triangles) -> Tensor:
    """The mesh's vertex of each vertex in the file, which repeats those on seams of textures."""
    return textures.cut(mesh).source if isinstance(mesh, TexturedMesh) else torch.arange(len(mesh.base))


def _animation(clip: Clip, names: Sequence[str], buffer: Buffer) -> dict[str, Any]:
    seconds = np.array(clip.seconds, dtype="<f4")[:, None]
    weights = np.zeros((len(seconds), len(names)), dtype="<f4")
    for name, column in clip.weights.items():
        weights[:, list(names).index(name)] = column
    when = buffer.column(seconds, None, min=[float(seconds[0, 0])], max=[float(seconds[-1, 0])])
    how = buffer.column(weights.reshape(-1, 1), None)  # key by key, all targets of each
    channel = {"sampler": 0, "target": {"node": 0, "path": "weights"}}
    sampler = {"input": when, "output": how, "interpolation": "LINEAR"}
    return {"name": clip.name, "channels": [channel], "samplers": [sampler]}


def decode(files: Mapping[str, bytes]) -> Morphed:
    """Vertices, shapes and clips of a file that `encode` made. Raises ValueError."""
    name, data = next(iter(files.items()))
    glb = read_glb(data, name)
    vertices = _points(glb.column(glb.part("meshes", 0, "primitives", 0, "attributes").get("POSITION"), 3))
    names = glb.part("meshes", 0, "extras").get("targetNames")
    targets = glb.primitive.get("targets")
    if not isinstance(names, list) or not isinstance(targets, list) or len(names) != len(targets):
        raise glb.wrong("its morph targets have no names")
    shapes = {
        str(word): _points(glb.sparse(glb.part("meshes", 0, "primitives", 0, "targets", i).get("POSITION"), 3))
        for i, word in enumerate(names)
    }
    if any(moved.shape != vertices.shape for moved in shapes.values()):
        raise glb.wrong("its morph targets are of another mesh")
    clips = []
    for i in range(len(glb.document.get("animations", []))):
        told = glb.part("animations", i)
        sampler = glb.part("animations", i, "samplers", 0)
        seconds = glb.column(sampler.get("input"), 1)[:, 0]
        weights = glb.column(sampler.get("output"), 1)
        if len(weights) != len(seconds) * len(names):
            raise glb.wrong("a clip of its weights is of other morph targets")
        weights = weights.reshape(len(seconds), len(names))
        used = {str(word): tuple(weights[:, k].tolist()) for k, word in enumerate(names) if weights[:, k].any()}
        clips.append(Clip(str(told.get("name")), tuple(seconds.tolist()), used))
    return Morphed(vertices, shapes, tuple(clips))


def _points(table: np.ndarray) -> Tensor:
    return from_y_up(torch.from_numpy(table.astype(np.float64)))


def rigged(
    head: TemplateMesh, turn: Similarity, renderer: Renderer, provenance: Mapping[str, str], name: str
) -> dict[str, bytes]:
    """One file of a head with its template's blendshapes and a clip of expressions, placed as `turn` says.

    Raises ArithmeticError for a file whose posed vertices are not ours.
    """
    placed = turn(head)
    assert isinstance(placed, TemplateMesh)  # A similarity keeps what it moves.
    shapes = {word: turn.scale * moved for word, moved in head.template.shapes.items()}
    files = encode(placed, shapes, (EXPRESSIONS,), renderer, provenance, name)
    check(name, files, placed, shapes, NEAR * max(1.0, turn.scale))
    return files


def check(
    where: object, files: Mapping[str, bytes], mesh: Triangles, shapes: Mapping[str, Tensor], near: float = NEAR
) -> None:
    """Raise ArithmeticError where a vertex at weight 1, read back, is further from ours than `near`."""
    again, rows = decode(files), _rows(mesh)
    rest = mesh.vertices.detach().double().cpu()
    for name, moved in shapes.items():
        ours = (rest + moved.double().cpu())[rows]
        away = float((again.vertices + again.shapes[name] - ours).abs().max())
        if not away <= near:
            raise ArithmeticError(f'{where} was not written: read back, "{name}" is {away:g} off, more than {near:g}.')


def write(
    path: Path,
    mesh: Triangles,
    shapes: Mapping[str, Float[Tensor, "V 3"]],
    clips: Sequence[Clip],
    renderer: Renderer,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write a mesh with blendshapes, whole or not at all, and only if it says the same when it is read back.

    Raises as `encode` and `check` do.
    """
    files = encode(mesh, shapes, clips, renderer, provenance or {}, path.name)
    check(path, files, mesh, shapes)
    write_file(path, files[path.name])
    return path
