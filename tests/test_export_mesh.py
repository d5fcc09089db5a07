"""Mesh files: frames, units and colour spaces, round trips, and what programs of others read in them."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import validate

from sds3d.cameras import orbit
from sds3d.colour import linear_to_srgb, srgb_to_linear
from sds3d.core import Background
from sds3d.export import EXPORTS, check_names, export, glb, obj, ply_mesh, read, stl
from sds3d.export.gltf import read_glb
from sds3d.export.placement import Placement, bounds
from sds3d.renderers.raster import Raster
from sds3d.renderers.shading import Lambert
from sds3d.representations.gaussians import Gaussians
from sds3d.representations.mesh import Mesh, icosphere

MESHES = ("glb", "obj", "ply-mesh", "stl")
MODULES = {"glb": glb, "obj": obj, "ply-mesh": ply_mesh, "stl": stl}


def pear(subdivisions: int = 2) -> Mesh:
    """A closed lump that is symmetric in nothing, with colours that tell the axes."""
    mesh = icosphere(subdivisions, 0.5)
    with torch.no_grad():
        mesh.offsets.add_(mesh.base.clamp(min=0) * torch.tensor([0.6, 0.3, 0.9]))
        mesh.colour_logits.copy_(5 * mesh.base)
    return mesh


def corner() -> Mesh:
    """An open surface: one triangle from the front (+x) over the left (+y) to the top (+z), red, green and blue."""
    return Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]), torch.full((3, 3), -20.0).fill_diagonal_(20.0))


def encode(name: str, mesh: Mesh, renderer: Raster | None = None, **told: str) -> bytes:
    entry = EXPORTS[name]
    return next(iter(MODULES[name].encode(mesh, renderer or Raster(), told, entry.file).values()))


@pytest.mark.parametrize("name", MESHES)
def test_read_back_it_is_the_same_mesh(tmp_path: Path, name: str) -> None:
    mesh = pear()
    made = export(name, mesh, tmp_path, Raster(Lambert()), {"prompt": "a pear"})
    again = read(made.path)
    assert isinstance(again, Mesh)
    assert len(again) == len(mesh)
    # The order of vertices is the file's own affair: each triangle's corners and colours are compared.
    torch.testing.assert_close(again.vertices[again.faces], mesh.vertices[mesh.faces], rtol=0, atol=1e-6)
    if name != "stl":
        torch.testing.assert_close(again.rgb[again.faces], mesh.rgb[mesh.faces], rtol=0, atol=0.51 / 255)
    assert made.psnr_db is not None
    assert made.psnr_db > 50
    assert {file.name for file in tmp_path.iterdir()} == {made.path.name, *(["asset.mtl"] if name == "obj" else [])}


@pytest.mark.parametrize("name", MESHES)
def test_equal_meshes_give_equal_bytes(name: str) -> None:
    assert encode(name, pear()) == encode(name, pear())


def test_a_gltf_is_y_up_with_the_front_to_z_and_linear_colours() -> None:
    read_back = read_glb(encode("glb", corner()), "a.glb")
    attributes = read_back.primitive["attributes"]
    position, normal, colour = (read_back.column(attributes[name], 3) for name in ("POSITION", "NORMAL", "COLOR_0"))
    assert position.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]], "front to +z, left to +x, up to +y"
    assert np.allclose(normal, 3**-0.5)
    assert np.allclose(colour, np.eye(3), atol=1e-6)
    assert read_back.column(read_back.primitive["indices"], 1).ravel().tolist() == [0, 1, 2]
    accessor = read_back.document["accessors"][attributes["POSITION"]]
    assert (accessor["min"], accessor["max"]) == ([0, 0, 0], [1, 1, 1])
    grey = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))
    read_back = read_glb(encode("glb", grey), "a.glb")
    colour = read_back.column(read_back.primitive["attributes"]["COLOR_0"], 3)
    assert np.allclose(colour, 0.21404114, atol=1e-6), "half of sRGB is a fifth of the light"


def test_the_material_is_chalk_in_a_light_and_else_unlit() -> None:
    lit, plain = (read_glb(encode("glb", pear(), r), "a.glb").document for r in (Raster(Lambert()), Raster()))
    assert lit["materials"] == [{"pbrMetallicRoughness": {"baseColorFactor": [1, 1, 1, 1], "metallicFactor": 0,
                                                          "roughnessFactor": 1}}]  # fmt: skip
    assert "extensionsUsed" not in lit
    assert plain["materials"][0]["extensions"] == {"KHR_materials_unlit": {}}
    assert plain["extensionsUsed"] == ["KHR_materials_unlit"]


def test_what_is_open_is_seen_from_both_sides() -> None:
    closed, open_ = (read_glb(encode("glb", mesh), "a.glb").document["materials"][0] for mesh in (pear(), corner()))
    assert "doubleSided" not in closed
    assert open_["doubleSided"] is True


def test_indices_take_two_bytes_where_they_fit() -> None:
    sizes = []
    for count in (65_535, 65_536):
        flat = torch.zeros(count, 3)
        mesh = Mesh(flat, torch.tensor([[0, 1, count - 1]]))
        document = read_glb(encode("glb", mesh), "a.glb").document
        sizes.append(document["accessors"][document["meshes"][0]["primitives"][0]["indices"]]["componentType"])
    assert sizes == [5123, 5125], "65535 is the index that restarts a primitive"


def test_an_obj_is_this_text() -> None:
    text = encode("obj", corner(), prompt="a\nb").decode()
    assert text.splitlines() == [
        "# prompt: a\\nb",
        "mtllib asset.mtl",
        "o asset",
        "v 0 0 1 1.000000 0.000000 0.000000",
        "v 1 0 0 0.000000 1.000000 0.000000",
        "v 0 1 0 0.000000 0.000000 1.000000",
        *["vn 0.577350 0.577350 0.577350"] * 3,
        "usemtl asset",
        "f 1//1 2//2 3//3",
    ]
    mtl = obj.encode(corner(), Raster(), {}, "asset.obj")["asset.mtl"].decode()
    assert "newmtl asset\n" in mtl
    assert "Kd 1 1 1\n" in mtl


def test_a_ply_and_an_stl_are_z_up_with_the_front_to_minus_y() -> None:
    data = encode("ply-mesh", corner())
    rows = list(struct.iter_unpack("<6f3B", data.partition(b"end_header\n")[2][:81]))
    assert [row[:3] for row in rows] == [(0, -1, 0), (1, 0, 0), (0, 0, 1)]
    assert [row[6:] for row in rows] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    data = encode("stl", corner(), prompt="a pear " * 99)
    assert data[:80].startswith(b"binary STL in mm, prompt: a pear a pear")
    assert len(data) == 80 + 4 + 50
    numbers = struct.unpack_from("<12f", data, 84)
    assert numbers[3:] == (0, -1000, 0, 1000, 0, 0, 0, 0, 1000), "millimetres"
    assert np.allclose(numbers[:3], np.array([1, -1, 1]) / 3**0.5)


@pytest.mark.parametrize("name", MESHES)
def test_triangles_stay_wound_outward(name: str) -> None:
    """A program of others sees the volume that we do, and its sign."""
    import trimesh

    mesh = pear()
    theirs = trimesh.load_mesh(io.BytesIO(encode(name, mesh)), file_type=EXPORTS[name].file.rpartition(".")[2])
    a, b, c = mesh.vertices.detach()[mesh.faces].double().unbind(1)
    volume = float((a * torch.linalg.cross(b, c)).sum() / 6)
    unit = 1e9 if name == "stl" else 1
    if isinstance(theirs, trimesh.Scene):
        theirs = theirs.to_geometry()
    assert theirs.is_watertight
    assert theirs.volume / unit == pytest.approx(volume, rel=1e-5)
    assert volume > 0


def test_the_transfer_function_is_that_of_srgb() -> None:
    values = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(values)), values, rtol=0, atol=1e-7)
    assert float(srgb_to_linear(torch.tensor(0.04045, dtype=torch.float64))) == pytest.approx(0.0031308, abs=1e-7)
    assert (srgb_to_linear(values).diff() > 0).all()


def test_size_and_pivot_place_a_mesh(tmp_path: Path) -> None:
    made = export("glb", pear(), tmp_path, Raster(), placement=Placement(0.3, "base"))
    low, high = bounds(read(made.path))
    assert float((high - low).max()) == pytest.approx(0.3, rel=1e-5)
    assert [*(low + high)[:2].tolist(), float(low[2])] == pytest.approx([0, 0, 0], abs=1e-6)
    assert made.psnr_db is not None and made.psnr_db > 60
    position = read_glb(made.path.read_bytes(), "a.glb").document["accessors"][0]
    assert position["min"][1] == pytest.approx(0, abs=1e-6), "it stands on the ground of a y-up world"


def test_a_mesh_and_gaussians_have_formats_of_their_own() -> None:
    cloud = Gaussians(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 4), torch.zeros(1), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="The asset is a mesh, which spz cannot hold; it can be written as glb, obj, "):
        check_names(["glb", "spz"], pear())
    with pytest.raises(ValueError, match="The asset is a set of Gaussians, which stl cannot hold"):
        check_names(["stl"], cloud)


def test_provenance_is_in_every_format_that_can_carry_it() -> None:
    told = {"prompt": "a p\N{LATIN SMALL LETTER A WITH DIAERESIS}r", "seed": "3"}
    assert b"comment prompt a p\\xe4r\n" in encode("ply-mesh", pear(), **told)
    assert b"# prompt: a p\\xe4r\n" in encode("obj", pear(), **told)
    assert b"prompt: a p\\xe4r; seed: 3" in encode("stl", pear(), **told)
    assert read_glb(encode("glb", pear(), **told), "a.glb").document["scenes"][0]["extras"] == told


def test_what_is_not_there_has_a_normal_all_the_same() -> None:
    """Two triangles back to back cancel, and a lone vertex has none: both get a unit normal, as glTF asks."""
    mesh = Mesh(torch.cat([torch.eye(3), torch.ones(1, 3)]), torch.tensor([[0, 1, 2], [0, 2, 1]]))
    data = read_glb(encode("glb", mesh), "a.glb")
    normals = data.column(data.primitive["attributes"]["NORMAL"], 3)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1)


DAMAGED = {
    "empty.glb": (b"", "no header"),
    "short.glb": (encode("glb", pear())[:-4], "cut short"),
    "corner.glb": (encode("glb", corner())[:-6] + b"\x09\x00" + encode("glb", corner())[-4:], "corner 9"),
    "points.glb": (encode("glb", pear()).replace(b'"mode":4', b'"mode":0'), "not of triangles"),
    "empty.obj": (b"", "empty"),
    "none.obj": (b"v 0 0 0\n", "no triangles|cannot be read"),
    "text.obj": (b"hello world\n", "no triangles|cannot be read"),
    "empty.mesh.ply": (b"", "empty"),
    "short.mesh.ply": (encode("ply-mesh", pear())[:-40], "cannot be read|no triangles"),
    "huge.mesh.ply": (
        encode("ply-mesh", pear()).replace(b"vertex 162", b"vertex 162000000000"),
        "cannot be read|no tri",
    ),
    "none.mesh.ply": (encode("ply-mesh", corner()).replace(b"face 1", b"face 0"), "cannot be read|no triangles"),
    "short.stl": (encode("stl", pear())[:-9], "cannot be read|no triangles"),
    "empty.stl": (b"", "empty"),
    "nan.stl": (encode("stl", corner())[:-14] + struct.pack("<3f", *[float("nan")] * 3) + b"\0\0", "not finite|no tri"),
}


@pytest.mark.parametrize("file", DAMAGED)
def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path, file: str) -> None:
    data, said = DAMAGED[file]
    path = tmp_path / file
    path.write_bytes(data)
    with pytest.raises(ValueError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert path.read_bytes() == data


def test_a_gltf_of_another_program_is_read_whole(tmp_path: Path) -> None:
    """Two meshes under nodes that move them, one with colours at its vertices, one with a factor: both, moved."""
    import trimesh

    scene = trimesh.Scene()
    red = trimesh.creation.box((1, 1, 1))
    red.visual.vertex_colors = np.tile([188, 0, 0, 255], (8, 1))
    scene.add_geometry(red, transform=trimesh.transformations.translation_matrix([2, 0, 0]))
    material = trimesh.visual.material.PBRMaterial(baseColorFactor=[0, 188, 0, 255])
    green = trimesh.creation.box((1, 1, 1))
    green.visual = trimesh.visual.TextureVisuals(uv=np.zeros((8, 2)), material=material)
    scene.add_geometry(green, transform=trimesh.transformations.translation_matrix([0, 0, 3]))
    path = tmp_path / "theirs.glb"
    path.write_bytes(scene.export(file_type="glb"))
    mesh = read(path)
    assert isinstance(mesh, Mesh)
    assert len(mesh) == 24
    centres = mesh.vertices[mesh.faces].mean(dim=1)
    left, front = centres[:, 1] > 1, centres[:, 0] > 1  # glTF's +x is our left, its +z our front
    assert left.sum() == front.sum() == 12
    colour = mesh.rgb[mesh.faces].mean(dim=1)
    assert (colour[left].argmax(dim=1) == 0).all()
    assert (colour[front].argmax(dim=1) == 1).all()
    bright = float(linear_to_srgb(torch.tensor(188 / 255, dtype=torch.float64)))
    assert colour[left, 0].mean().item() == pytest.approx(bright, abs=0.01), "colours of vertices are linear"


FUZZED = encode("glb", corner())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(FUZZED) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_cost_a_sentence_at_most(flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(FUZZED)
    for place, value in flips:
        damaged[place] = value
    try:
        again = glb.decode({"a.glb": bytes(damaged)})
    except ValueError:
        return
    assert torch.isfinite(again.vertices).all()


@pytest.mark.slow
@pytest.mark.parametrize("light", [Lambert(), None], ids=["lit", "unlit"])
@pytest.mark.parametrize("mesh", [pear(), corner()], ids=["closed", "open"])
def test_the_validator_has_nothing_to_say(tmp_path: Path, mesh: Mesh, light: Lambert | None) -> None:
    told = {"prompt": "a p\N{LATIN SMALL LETTER A WITH DIAERESIS}r", "seed": "3"}
    path = export("glb", mesh, tmp_path, Raster(light), told, placement=Placement(0.3, "base")).path
    assert validate(path) == []


def test_pictures_of_the_file_are_those_of_the_asset(tmp_path: Path) -> None:
    """The bound of the check is on pictures, so here they are: the same to a thousandth."""
    made = export("glb", pear(), tmp_path, Raster(Lambert()))
    again = read(made.path)
    cameras, white = orbit([0.0, 90.0], 20.0, 32), Background(torch.ones(2, 3))
    a, b = (Raster(Lambert())(rep, cameras, white).rgb for rep in (pear(), again))
    assert a.std() > 0.1
    torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
