"""Templates that a user brings: any frame and size, landmarks by vertex or triangle, and what is told of bad ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sds3d.representations.head import Identity, Template, head
from sds3d.representations.head_files import ICT_LANDMARKS, ICT_NEUTRAL, ict, load, similarity
from sds3d.representations.head_profile import UNIT_CM

IDENTITY = Identity(nose=0.8, jaw=-0.6, eyes=0.4)


def turned(vertices: Tensor) -> Tensor:
    """Another frame and another size."""
    angle = math.radians(50)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1.0]])
    return 31.0 * vertices @ turn.T[:, [2, 0, 1]] + torch.tensor([5.0, -2.0, 40.0])


def obj(template: Template, vertices: Tensor, places: bool = True) -> str:
    lines = [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in vertices.tolist()]
    assert template.uv is not None and template.uv_faces is not None
    if places:
        lines += [f"vt {u:.6f} {v:.6f}" for u, v in template.uv.tolist()]
        pairs = zip((template.faces + 1).tolist(), (template.uv_faces + 1).tolist(), strict=True)
        return "\n".join([*lines, *("f " + " ".join(f"{a}/{b}" for a, b in zip(f, g, strict=True)) for f, g in pairs)])
    return "\n".join([*lines, *("f " + " ".join(map(str, f)) for f in (template.faces + 1).tolist())])


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Template]:
    """Our own head in another frame and size, as a file, with its landmarks."""
    folder, it = tmp_path_factory.mktemp("head"), head(IDENTITY)
    (folder / "head.obj").write_text(obj(it, turned(it.vertices)))
    listed = {"faces": it.landmarks.face.tolist(), "weights": it.landmarks.weights.double().tolist()}
    (folder / "landmarks.json").write_text(json.dumps(listed))
    return folder / "head.obj", folder / "landmarks.json", it


def test_a_head_of_any_size_and_pose_comes_into_the_world(brought: tuple[Path, Path, Template]) -> None:
    mesh, landmarks, it = brought
    again = load(mesh, landmarks)
    assert torch.equal(again.faces, it.faces)
    assert again.uv is not None and it.uv is not None
    torch.testing.assert_close(again.uv, it.uv, rtol=0, atol=1e-6)
    assert again.vertices.norm(dim=1).max() <= 0.98 + 1e-6
    # All distances are in one proportion, and the face looks where ours does.
    scale, turn, shift = similarity(it.vertices.double(), again.vertices.double())
    torch.testing.assert_close(
        scale * it.vertices.double() @ turn.T + shift, again.vertices.double(), rtol=0, atol=1e-5
    )
    assert turn[0, 0] > math.cos(math.radians(6)) and turn[2, 2] > math.cos(math.radians(6))
    assert scale == pytest.approx(1, abs=0.08)
    assert again.shapes == {}


def test_contours_are_carried_along(brought: tuple[Path, Path, Template]) -> None:
    mesh, landmarks, it = brought
    again = load(mesh, landmarks)
    assert again.contours.ids == it.contours.ids
    scale, turn, shift = similarity(it.vertices.double(), again.vertices.double())
    wanted = scale * it.contours.at(it.vertices, it.faces).double() @ turn.T + shift
    away = (again.contours.at(again.vertices, again.faces) - wanted).norm(dim=1) * UNIT_CM
    lines = torch.tensor([number < 468 for number in it.contours.ids])  # the pupils lie under no landmark
    assert away[lines].max() < 1.0, "centimetres"
    assert away[lines].mean() < 0.3


def test_landmarks_may_be_vertices(brought: tuple[Path, Path, Template], tmp_path: Path) -> None:
    mesh, _, it = brought
    corner = it.landmarks.weights.argmax(dim=1)
    vertices = it.faces[it.landmarks.face, corner]
    (tmp_path / "list.json").write_text(json.dumps(vertices.tolist()))
    again = load(mesh, tmp_path / "list.json")
    torch.testing.assert_close(again.landmarks.at(again.vertices, again.faces), again.vertices[vertices])


def test_an_obj_may_have_quads_and_count_backward(brought: tuple[Path, Path, Template], tmp_path: Path) -> None:
    _, landmarks, it = brought
    lines = obj(it, turned(it.vertices), places=False).splitlines()
    n = len(it.vertices)
    backward = [
        "f " + " ".join(str(int(corner) - 1 - n) for corner in line.split()[1:]) if line.startswith("f ") else line
        for line in lines
    ]
    (tmp_path / "back.obj").write_text("\n".join(["# a head", "o head", *backward]))
    again = load(tmp_path / "back.obj", landmarks)
    assert torch.equal(again.faces, it.faces)
    assert again.uv is None
    with pytest.raises(ValueError, match="no texture places"):
        again.textured(32)
    (tmp_path / "quads.obj").write_text("\n".join([*lines, "f 1 2 3 4"]))
    assert load(tmp_path / "quads.obj", landmarks).faces[-2:].tolist() == [[0, 1, 2], [0, 2, 3]]


def test_arrays_as_flame_names_them(brought: tuple[Path, Path, Template], tmp_path: Path) -> None:
    _, landmarks, it = brought
    directions = np.zeros((len(it.vertices), 3, 302), dtype=np.float32)
    directions[:, 1, 301] = 0.01
    frame = it.vertices[:, [1, 2, 0]].numpy()  # y-up, metres or whatever it may be
    np.savez(tmp_path / "flame.npz", v_template=frame, f=it.faces.numpy().astype(np.uint32), shapedirs=directions)
    again = load(tmp_path / "flame.npz", landmarks)
    assert list(again.shapes) == ["expression0", "expression1"]
    up = again.shapes["expression1"]
    assert up[:, 2].min() > 0.009 and up[:, :2].abs().max() < 0.002, "up in the world"
    moved = again.posed({"expression1": 1.0}) - again.vertices
    torch.testing.assert_close(moved, up, rtol=0, atol=1e-6)


@pytest.fixture
def facekit(tmp_path: Path) -> tuple[Path, Template]:
    """Our head in ICT-FaceKit's layout: its landmarks at the numbers that ICT-FaceKit has them at."""
    it = head()
    corner = it.landmarks.weights.argmax(dim=1)
    ours, count = it.faces[it.landmarks.face, corner], max(*ICT_LANDMARKS, len(it.vertices)) + 100
    order = torch.full((count,), -1)
    order[torch.tensor(ICT_LANDMARKS)] = ours
    rest = torch.tensor([i for i in range(len(it.vertices)) if i not in set(ours.tolist())])
    order[(order < 0).nonzero()[: len(rest), 0]] = rest
    new = torch.full((len(it.vertices),), -1)
    new[order[order >= 0]] = (order >= 0).nonzero()[:, 0]

    def text(vertices: Tensor) -> str:
        rows = vertices[order.clamp(min=0)][:, [1, 2, 0]] * UNIT_CM
        corners = [" ".join(str(int(new[i]) + 1) for i in face) for face in it.faces.tolist()]
        return "\n".join([*(f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in rows.tolist()), *(f"f {c}" for c in corners)])

    (tmp_path / ICT_NEUTRAL).write_text(text(it.vertices))
    for name, shape in {
        "mouthSmile_L": "mouthSmileLeft",
        "browInnerUp_L": "jawOpen",
        "browInnerUp_R": "jawLeft",
    }.items():
        (tmp_path / f"{name}.obj").write_text(text(it.posed({shape: 1.0})))
    (tmp_path / "identity000.obj").write_text("v 0 0 0")
    return tmp_path, it


def test_ict_facekit_brings_its_expressions_by_arkits_names(facekit: tuple[Path, Template]) -> None:
    folder, it = facekit
    again = ict(folder)
    assert set(again.shapes) == {"mouthSmileLeft", "browInnerUp"}
    corner = again.landmarks.at(again.vertices, again.faces)[54]
    smile = again.landmarks.at(again.posed({"mouthSmileLeft": 1.0}), again.faces)[54] - corner
    ours = it.landmarks.at(it.shapes["mouthSmileLeft"], it.faces)[54]
    torch.testing.assert_close(smile, ours, rtol=0.1, atol=2e-3)
    both = it.shapes["jawOpen"].abs().max() + it.shapes["jawLeft"].abs().max()
    assert 0 < again.shapes["browInnerUp"].abs().max() < 1.2 * both
    assert "MIT" in again.licence
    (folder / "jawOpen.obj").write_text("v 0 0 0")
    with pytest.raises(ValueError, match=f"has 1 vertices, and {ICT_NEUTRAL} has"):
        ict(folder)
    (folder / ICT_NEUTRAL).unlink()
    with pytest.raises(ValueError, match=f"holds no {ICT_NEUTRAL}"):
        ict(folder)


def test_the_similarity_is_found_exactly() -> None:
    points = torch.rand(9, 3, generator=torch.Generator().manual_seed(0)).double()
    targets = turned(points.float()).double()
    scale, turn, shift = similarity(points, targets)
    assert scale == pytest.approx(31, rel=1e-5)
    assert torch.linalg.det(turn) == pytest.approx(1)
    torch.testing.assert_close(scale * points @ turn.T + shift, targets, rtol=0, atol=1e-4)
    mirrored = similarity(points, targets * torch.tensor([-1.0, 1.0, 1.0]))[1]
    assert torch.linalg.det(mirrored) == pytest.approx(1), "never a mirror"


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        (list(range(51)), "lists 51 landmarks; there must be 68, in iBUG's order"),
        ([*range(67), 99_999], r"Landmark 67 of .* is vertex 99999, but .*head.obj has 4810, counted from 0"),
        ([*range(67), -1], "Landmark 67 of .* is vertex -1, but"),
        ([*range(67), 2.5], "Landmark 67 of .* is vertex 2.5, but"),
        ([*range(67), None], "Landmark 67 of .* is vertex None, but"),
        (list(range(68)), r"are no face: .* they lie .* cm off, .* iBUG's order"),
        ({"faces": list(range(68))}, "lists no landmarks; it must hold 68 numbers of vertices"),
        ({"faces": [10**6] * 68, "weights": [[1, 0, 0]] * 68}, "is triangle 1000000, but .* has 9608"),
        ({"faces": [0] * 68, "weights": [[1, 1, 0]] * 68}, "68 rows of three shares"),
        ({"faces": [0] * 68, "weights": "x"}, "68 rows of three shares"),
        ("head", "lists no landmarks"),
    ],
)
def test_bad_landmarks_cost_one_sentence(
    brought: tuple[Path, Path, Template], tmp_path: Path, listed: object, told: str
) -> None:
    (tmp_path / "list.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=told) as caught:
        load(brought[0], tmp_path / "list.json")
    assert "\n" not in str(caught.value)


def test_mirrored_landmarks_are_no_face(brought: tuple[Path, Path, Template], tmp_path: Path) -> None:
    mesh, _, it = brought
    mirror = it.landmarks.face.tolist()
    left, right = mirror[36:42], mirror[42:48]
    mirror[36:42], mirror[42:48] = right, left
    (tmp_path / "list.json").write_text(
        json.dumps({"faces": mirror, "weights": it.landmarks.weights.double().tolist()})
    )
    with pytest.raises(ValueError, match="are no face"):
        load(mesh, tmp_path / "list.json")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("head.ply", b"ply", "it must be an .obj, or an .npz of arrays"),
        ("head.obj", b"", r"holds no mesh that can be drawn: A mesh needs at least one triangle"),
        ("head.obj", b"v 0 0\nf 1 1 1", "a vertex that is not three numbers"),
        ("head.obj", b"v 0 0 0\nf 1 2 3", "holds no mesh that can be drawn: .*corner 2"),
        ("head.obj", b"v 0 0 nan\nf 1 1 1", "not finite"),
        ("head.obj", b"v 0 0 0\nf a b c", "is no number"),
        ("head.npz", b"junk", "cannot be read as arrays alone"),
    ],
)
def test_bad_meshes_cost_one_sentence(
    brought: tuple[Path, Path, Template], tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told) as caught:
        load(tmp_path / name, brought[1])
    assert "\n" not in str(caught.value)


def test_pickled_objects_are_never_opened(brought: tuple[Path, Path, Template], tmp_path: Path) -> None:
    np.savez(tmp_path / "flame.npz", v_template=np.array([{"a": 1}], dtype=object), f=np.zeros((1, 3)))
    with pytest.raises(ValueError, match="Pickled objects are not opened"):
        load(tmp_path / "flame.npz", brought[1])
    np.savez(tmp_path / "flame.npz", f=np.zeros((1, 3)))
    with pytest.raises(ValueError, match='lacks the array "v_template"'):
        load(tmp_path / "flame.npz", brought[1])
    with pytest.raises(ValueError, match="There is no file"):
        load(tmp_path / "none.obj", brought[1])
    (tmp_path / "list.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        load(brought[0], tmp_path / "list.json")
