"""A mesh with blendshapes as .glb: what is read back is what was written, and a reader of others says so too."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from judges import SAID, likeness, ours, shoot, validate
from torch import Tensor

from sds3d.cameras import orbit
from sds3d.export import glb, glb_morph, read
from sds3d.export.gltf import read_glb
from sds3d.export.surfaces import to_y_up
from sds3d.renderers.raster import Raster
from sds3d.renderers.shading import Lambert
from sds3d.representations.clips import EXPRESSIONS, Clip
from sds3d.representations.head import Identity, Template, head
from sds3d.representations.mesh import Mesh, icosphere
from sds3d.representations.texture import TexturedMesh, unwrap

LIT = Raster(Lambert())
TWO_KEYS = Clip("nod", (0.0, 0.5), {"up": (0.0, 1.0)})


def ball() -> tuple[Mesh, dict[str, Tensor]]:
    """A ball, and three shapes: all of it, a few vertices, and nothing."""
    mesh = icosphere(2, 0.5)
    base = mesh.vertices.detach()
    up = torch.tensor([0.0, 0.0, 0.2]).expand_as(base)
    few = torch.zeros_like(base)
    few[base[:, 0] > 0.45] = torch.tensor([0.1, -0.05, 0.02])
    return mesh, {"up": up, "nose": few, "nothing": torch.zeros_like(base)}


def by_hand(data: bytes) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Positions, displacements and tilts of normals of a file, read without our reader; glTF's frame."""
    size = struct.unpack_from("<I", data, 12)[0]
    document, body = json.loads(data[20 : 20 + size]), data[28 + size :]

    def rows(view: int, count: int, kind: str) -> np.ndarray:
        return np.frombuffer(body, kind, count, document["bufferViews"][view]["byteOffset"])

    def table(accessor: dict) -> np.ndarray:
        n = accessor["count"]
        if "bufferView" in accessor:
            return rows(accessor["bufferView"], 3 * n, "<f4").reshape(n, 3)
        found = np.zeros((n, 3), dtype="<f4")
        if "sparse" in accessor:
            few = accessor["sparse"]["count"]
            at = rows(accessor["sparse"]["indices"]["bufferView"], few, "<u4")
            assert (np.diff(at.astype(int)) > 0).all(), "glTF wants indices to grow"
            found[at] = rows(accessor["sparse"]["values"]["bufferView"], 3 * few, "<f4").reshape(few, 3)
        return found

    mesh = document["meshes"][0]
    primitive, names = mesh["primitives"][0], mesh["extras"]["targetNames"]
    column = lambda number: table(document["accessors"][number])  # noqa: E731
    moved = {name: column(one["POSITION"]) for name, one in zip(names, primitive["targets"], strict=True)}
    tilted = {name: column(one["NORMAL"]) for name, one in zip(names, primitive["targets"], strict=True)}
    return column(primitive["attributes"]["POSITION"]), moved, tilted


def encoded(mesh: Mesh | TexturedMesh, shapes: dict[str, Tensor], *clips: Clip) -> bytes:
    return glb_morph.encode(mesh, shapes, clips, LIT, {"prompt": "a ball"}, "a.glb")["a.glb"]


@pytest.mark.parametrize("textured", [False, True], ids=["colours", "textures"])
def test_a_reader_of_ones_own_finds_our_vertices_at_weight_1(textured: bool) -> None:
    mesh, shapes = ball()
    kind = unwrap(mesh, 64) if textured else mesh
    rest, moved, tilted = by_hand(encoded(kind, shapes, TWO_KEYS))
    assert list(moved) == list(shapes)
    ours = to_y_up(mesh.vertices.detach()).numpy()
    row = ((rest[:, None] - ours[None]) ** 2).sum(axis=2).argmin(axis=1)  # the vertex that each of the file repeats
    assert len(rest) == len(ours) if not textured else len(rest) > len(ours)
    for name, shape in shapes.items():
        posed = Mesh(mesh.vertices.detach() + shape, mesh.faces)
        there = rest + moved[name]
        assert np.abs(there - to_y_up(posed.vertices.detach()).numpy()[row]).max() < 1e-6
        normals = to_y_up(posed.normals().detach()).numpy()[row]
        before = to_y_up(mesh.normals().detach()).numpy()[row]
        assert np.abs(before + tilted[name] - normals).max() < 1e-5


def test_what_does_not_move_takes_no_bytes() -> None:
    mesh, shapes = ball()
    document = read_glb(encoded(mesh, shapes), "a.glb").document
    targets = document["meshes"][0]["primitives"][0]["targets"]
    up, nose, nothing = (document["accessors"][one["POSITION"]] for one in targets)
    assert up["sparse"]["count"] == len(mesh.base)
    assert nose["sparse"]["count"] == int((mesh.base[:, 0] > 0.45).sum())
    assert "sparse" not in nothing and "bufferView" not in nothing
    assert nothing["count"] == len(mesh.base)
    assert (nose["min"], nose["max"]) == ([np.float32(-0.05), 0, 0], [0, np.float32(0.02), np.float32(0.1)])


def test_clips_and_shapes_are_read_back_as_written() -> None:
    mesh, shapes = ball()
    clips = (TWO_KEYS, Clip("both", (0.25, 1.0, 2.5), {"nose": (0.5, 1.0, 0.0), "up": (0.0, 0.25, 1.0)}))
    again = glb_morph.decode({"a.glb": encoded(mesh, shapes, *clips)})
    assert again.clips == clips
    torch.testing.assert_close(again.vertices, mesh.vertices.detach().double(), rtol=0, atol=1e-7)
    for name, shape in shapes.items():
        torch.testing.assert_close(again.shapes[name], shape.double(), rtol=0, atol=1e-7)


def test_as_a_plain_glb_it_is_the_mesh_at_rest(tmp_path: Path) -> None:
    mesh, shapes = ball()
    path = glb_morph.write(tmp_path / "a.glb", mesh, shapes, [TWO_KEYS], LIT, {"generator": "sds3d test"})
    again = read(path)
    assert isinstance(again, Mesh)
    torch.testing.assert_close(again.vertices, mesh.vertices, rtol=0, atol=1e-7)
    plain = glb.encode(mesh, LIT, {}, "a.glb")["a.glb"]
    assert read_glb(plain, "a.glb").document["materials"] == read_glb(path.read_bytes(), "a.glb").document["materials"]


def test_the_validator_finds_nothing_in_a_head(tmp_path: Path) -> None:
    """And the head's own figures: vertices at weight 1, and a smile that is one."""
    it = head(Identity(nose=0.5))
    mesh = it.mesh()
    path = glb_morph.write(tmp_path / "head.glb", mesh, it.shapes, [EXPRESSIONS], LIT, {"licence": it.licence})
    rest, moved, _ = by_hand(path.read_bytes())
    assert len(moved) == 51
    for name in it.shapes:
        ours = to_y_up(it.posed({name: 1.0}).double()).numpy()
        assert np.abs(rest.astype(np.float64) + moved[name] - ours).max() < 1e-5
    smile = moved["mouthSmileLeft"] + moved["mouthSmileRight"]
    corners = it.faces[it.landmarks.face[[48, 54]]]
    rise = (it.landmarks.weights[[48, 54]].numpy()[..., None] * smile[corners.numpy()]).sum(axis=1)[:, 1]
    assert (rise >= 0.02 * np.ptp(rest[:, 1])).all()
    assert path.stat().st_size < 4_000_000
    assert validate(path) == []


def test_the_validator_finds_nothing_in_a_textured_one(tmp_path: Path) -> None:
    mesh, shapes = ball()
    path = glb_morph.write(tmp_path / "ball.glb", unwrap(mesh, 64), shapes, [TWO_KEYS], Raster())
    assert validate(path) == []


FACES = {
    "rest": {"jawOpen": 0.0},
    "smile": {"mouthSmileLeft": 1.0, "mouthSmileRight": 1.0, "cheekSquintLeft": 0.7, "cheekSquintRight": 0.7},
    "open": {"jawOpen": 1.0, "eyeBlinkRight": 1.0, "eyeLookInLeft": 1.0},
}
PAINT = {
    **{"skin": (0.9, 0.72, 0.6), "lips": (0.7, 0.3, 0.28), "mouth": (0.3, 0.08, 0.08)},
    **{f"{side} eye": (1.0, 1.0, 1.0) for side in ("left", "right")},
    **{f"{side} iris": (0.15, 0.4, 0.85) for side in ("left", "right")},
    **{f"{side} pupil": (0.03, 0.03, 0.03) for side in ("left", "right")},
}


def painted(it: Template, vertices: Tensor) -> Mesh:
    return Mesh(vertices, it.faces, it.mesh(PAINT).colour_logits.detach())


@pytest.mark.slow
def test_a_browser_plays_the_faces_that_we_draw(tmp_path: Path) -> None:
    """model-viewer, at rest and with expressions held by a clip."""
    it, cameras = head(), orbit([25.0], 5.0, 320, radius=2.4)
    for name, weights in FACES.items():
        held = Clip(name, (0.0, 1.0), {shape: (weight, weight) for shape, weight in weights.items()})
        glb_morph.write(tmp_path / f"{name}.glb", painted(it, it.vertices), it.shapes, [held], Raster())
    shots = shoot([("playing", "glb", tmp_path / f"{name}.glb") for name in FACES], cameras)
    drawn = {name: ours(painted(it, it.posed(weights)), Raster(), cameras) for name, weights in FACES.items()}
    for (name, own), shot in zip(drawn.items(), shots, strict=True):
        overlap, near = likeness(shot.picture, own)
        SAID.append(f"model-viewer, a head, {name}: IoU {overlap:.3f}, {near:.1f} dB")
        assert shot.told["clips"] == [name]
        assert overlap >= 0.99
        assert near >= 33
        others = [likeness(shot.picture, other)[1] for word, other in drawn.items() if word != name]
        assert near > max(others) + 1, "it shows this face and no other"


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    mesh, shapes = ball()
    with pytest.raises(ValueError, match='moves "nod", and there is no such blendshape'):
        encoded(mesh, shapes, Clip("nod", (0.0, 1.0), {"nod": (0.0, 1.0)}))
    with pytest.raises(ValueError, match="no blendshape to write"):
        encoded(mesh, {})
    with pytest.raises(ValueError, match=r'"up" must hold finite displacements \[162, 3\], given \[3, 3\]'):
        encoded(mesh, {"up": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="not finite"):
        encoded(mesh, {"up": torch.full((162, 3), torch.nan)})
    for seconds, weights, why in (
        ((0.0,), (1.0,), "two keys"),
        ((0.0, 0.0), (1.0, 1.0), "must grow"),
        ((0.0, 1.0), (1.0,), "2 keys, but 1 weights"),
    ):
        with pytest.raises(ValueError, match=why):
            Clip("c", seconds, {"up": weights})


def test_a_damaged_file_is_refused() -> None:
    mesh, shapes = ball()
    data = encoded(mesh, shapes, TWO_KEYS)
    for old, new in ((b'"targetNames"', b'"targetnames"'), (b'"count":', b'"cOunt":')):
        with pytest.raises(ValueError, match="is not a .glb that can be read"):
            glb_morph.decode({"a.glb": data.replace(old, new)})
