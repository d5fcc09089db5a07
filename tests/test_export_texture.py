"""Textured meshes as glTF and OBJ: places, maps and tangents, round trips, and what the validator says."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from judges import validate
from PIL import Image
from torch import Tensor

from sds3d.export import check_names, export, glb, obj, read, textures
from sds3d.export.gltf import Glb, read_glb
from sds3d.export.placement import Placement
from sds3d.renderers.raster import Raster
from sds3d.renderers.shading import Lambert
from sds3d.representations.mesh import Mesh, icosphere
from sds3d.representations.texture import TexturedMesh, blank

SIZE = 64


def cells(faces: int) -> Tensor:
    """A place for each corner: every triangle in a cell of its own, every other one mirrored."""
    side = math.ceil(math.sqrt(faces))
    index = torch.arange(faces)
    origin = torch.stack([index % side, index // side], dim=-1)[:, None]
    corners = torch.tensor([[0.15, 0.15], [0.85, 0.15], [0.15, 0.85]]).expand(faces, 3, 2).clone()
    corners[1::2, :, 0] = 1 - corners[1::2, :, 0]
    return ((origin + corners) / side).reshape(-1, 2)


def lump(maps: bool = True) -> TexturedMesh:
    """A closed lump with seams everywhere; its maps vary smoothly, or are as `blank` makes them."""
    mesh = icosphere(1, 0.5)
    with torch.no_grad():
        mesh.offsets.add_(mesh.base.clamp(min=0) * torch.tensor([0.6, 0.3, 0.9]))
    uv = cells(len(mesh))
    made = blank(SIZE)
    row, column = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    made["albedo_logits"] = 2 * torch.stack([row, column, -row], dim=-1)
    if maps:
        made["roughness_logits"] = 2 * row[..., None]
        made["metallic_logits"] = 2 * column[..., None]
        made["slopes"] = 0.5 * torch.stack([row, column], dim=-1)
    return TexturedMesh(mesh.vertices.detach(), mesh.faces, uv, torch.arange(len(uv)).view(-1, 3), made)


def quad() -> TexturedMesh:
    """A square that faces us (+x), u to our right (its left, +y), v up: red below, blue above, the left half dark."""
    vertices = torch.tensor([[0.0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]])
    uv = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    albedo = torch.full((16, 16, 3), -6.0)
    albedo[:8, :, 2] = albedo[8:, :, 0] = 6.0  # row 0 is at the top
    albedo[:, :8] -= 1.5
    return TexturedMesh(vertices, faces, uv, faces, {**blank(16), "albedo_logits": albedo})


def glb_of(mesh: TexturedMesh, renderer: Raster | None = None) -> Glb:
    return read_glb(glb.encode(mesh, renderer or Raster(), {}, "a.glb")["a.glb"], "a.glb")


def picture(data: Glb, index: int) -> np.ndarray:
    image = data.document["images"][data.document["textures"][index]["source"]]
    assert image["mimeType"] == "image/png"
    with Image.open(io.BytesIO(data.view(image["bufferView"]))) as opened:
        return np.asarray(opened)


@pytest.mark.parametrize("name", ["glb", "obj"])
@pytest.mark.parametrize("maps", [True, False], ids=["maps", "factors"])
def test_read_back_it_is_the_same(tmp_path: Path, name: str, maps: bool) -> None:
    mesh = lump(maps)
    made = export(name, mesh, tmp_path, Raster(Lambert()), {"prompt": "a lump"}, placement=Placement(0.4, "base"))
    assert made.psnr_db is not None
    assert made.psnr_db > 42
    made = export(name, mesh, tmp_path, Raster(), {"prompt": "a lump"})
    again = read(made.path)
    assert isinstance(again, TexturedMesh)
    assert (len(again), len(again.base)) == (len(mesh), len(mesh.base)), "seams are sewn"
    torch.testing.assert_close(again.vertices[again.faces], mesh.vertices[mesh.faces], rtol=0, atol=1e-6)
    torch.testing.assert_close(again.uv[again.uv_faces], mesh.uv[mesh.uv_faces], rtol=0, atol=1e-6)
    for key, expected in mesh.maps().items():
        torch.testing.assert_close(
            again.maps()[key], expected, rtol=0, atol=1.2 / 255, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_a_gltf_has_its_pictures_the_right_way_up() -> None:
    data = glb_of(quad())
    attributes = data.primitive["attributes"]
    position, uv = data.column(attributes["POSITION"], 3), data.column(attributes["TEXCOORD_0"], 2)
    corner = {tuple(p): tuple(t) for p, t in zip(position.tolist(), uv.tolist(), strict=True)}
    # In glTF's world we face +z with our left to +x: the corner below on our right has u = 0 and, v running down, 1.
    assert corner == {(-1, -1, 0): (0, 1), (1, -1, 0): (1, 1), (1, 1, 0): (1, 0), (-1, 1, 0): (0, 0)}
    shown = picture(data, 0)
    assert shown[0, -1].argmax() == 2, "blue above"
    assert shown[-1, -1].argmax() == 0, "red below"
    expected = (255 * quad().maps()["albedo"]).round().byte().numpy()
    assert np.array_equal(shown, expected), "base colour is sRGB, as ours"


def test_maps_are_packed_as_gltf_wants() -> None:
    mesh, data = lump(), glb_of(lump(), Raster(Lambert()))
    (material,) = data.document["materials"]
    surface, maps = material["pbrMetallicRoughness"], mesh.maps()
    orm = picture(data, surface["metallicRoughnessTexture"]["index"])
    assert (orm[..., 0] == 255).all(), "no occlusion is known"
    assert abs(orm[..., 1] / 255.0 - maps["roughness"][..., 0].detach().numpy()).max() < 0.51 / 255
    assert abs(orm[..., 2] / 255.0 - maps["metallic"][..., 0].detach().numpy()).max() < 0.51 / 255
    assert "roughnessFactor" not in surface
    normal = picture(data, material["normalTexture"]["index"])
    assert abs(normal / 255.0 - maps["normal"].detach().numpy()).max() < 0.51 / 255
    assert data.document["samplers"] == [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]


def test_what_is_the_same_everywhere_is_a_number() -> None:
    data = glb_of(lump(maps=False))
    surface = data.document["materials"][0]["pbrMetallicRoughness"]
    assert surface["roughnessFactor"] == pytest.approx(1 / (1 + math.exp(-1.5)), abs=1e-6)
    assert surface["metallicFactor"] == pytest.approx(1 / (1 + math.exp(4)), abs=1e-6)
    assert len(data.document["images"]) == 1
    assert "TANGENT" not in data.primitive["attributes"]
    files = obj.encode(lump(maps=False), Raster(), {}, "asset.obj")
    assert list(files) == ["asset.obj", "asset.mtl", "asset-albedo.png"]
    assert b"Pr 0.817574\nPm 0.017986\n" in files["asset.mtl"]
    assert list(obj.encode(lump(), Raster(), {}, "asset.obj"))[2:] == [
        f"asset-{key}.png" for key in ("albedo", "roughness", "metallic", "normal")
    ]


def test_tangents_point_where_u_grows_and_are_handed() -> None:
    mesh = lump()
    cut = textures.cut(mesh)
    normals, tangents = cut.normals, cut.tangents[:, :3]
    torch.testing.assert_close(tangents.norm(dim=-1), torch.ones(len(tangents)).double())
    assert float((normals * tangents).sum(dim=-1).abs().max()) < 1e-9
    # A step along a triangle that grows u by du and v by dv goes along t and along w (n x t).
    a, b, c = cut.vertices[cut.faces].unbind(1)
    p, q, r = cut.uv[cut.faces].unbind(1)
    edge, step = torch.stack([b - a, c - a], 1), torch.stack([q - p, r - p], 1)  # [F, 2, 3], [F, 2, 2]
    along = torch.linalg.solve(step, edge)  # rows: dP/du, dP/dv
    handed = torch.linalg.cross(normals, tangents) * cut.tangents[:, 3:]
    for corner in cut.faces.T:
        assert ((along[:, 0] * tangents[corner]).sum(-1) > 0).all()
        assert ((along[:, 1] * handed[corner]).sum(-1) > 0).all()
    assert set(cut.tangents[:, 3].tolist()) == {-1.0, 1.0}


def test_a_square_says_where_its_tangent_points() -> None:
    cut = textures.cut(quad())
    torch.testing.assert_close(cut.tangents, torch.tensor([[0.0, 1, 0, 1]]).double().expand(4, 4))


def test_other_programs_see_the_texture(tmp_path: Path) -> None:
    """trimesh reads the .glb: its v runs up, and its picture is ours."""
    import trimesh

    path = export("glb", quad(), tmp_path, Raster()).path
    theirs = trimesh.load(path, process=False, force="mesh")
    assert isinstance(theirs, trimesh.Trimesh)
    corner = {tuple(p): tuple(t) for p, t in zip(theirs.vertices.tolist(), theirs.visual.uv.tolist(), strict=True)}
    assert corner[(-1, -1, 0)] == (0, 0)
    assert corner[(1, 1, 0)] == (1, 1)
    shown = np.asarray(theirs.visual.material.baseColorTexture.convert("RGB"))
    assert np.array_equal(shown, (255 * quad().maps()["albedo"]).round().byte().numpy())


def test_what_cannot_hold_textures_says_so() -> None:
    with pytest.raises(
        ValueError, match="is a textured mesh, which ply-mesh cannot hold; it can be written as glb, obj"
    ):
        check_names(["glb", "obj", "stl", "ply-mesh"], lump())


def test_the_shape_is_an_stl(tmp_path: Path) -> None:
    again = read(export("stl", lump(), tmp_path, Raster()).path)
    assert isinstance(again, Mesh)
    assert len(again.base) == len(lump().base)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"image/png"', b'"image/pnh"', None),
        (b"\x89PNG", b"\x88PNG", "texture that cannot be read"),
        (b'"source":0', b'"source":9', "lacks 9"),
        (b'"roughnessFactor":0', b'"roughnessFactor":7', "where a number in"),
        (b'"TEXCOORD_0"', b'"TEXCOORD_1"', None),
    ],
)
def test_damaged_textures_cost_a_sentence(old: bytes, new: bytes, said: str | None) -> None:
    data = glb.encode(lump(maps=False), Raster(), {}, "a.glb")["a.glb"]
    assert old in data
    if said is None:
        glb.decode({"a.glb": data.replace(old, new, 1)})
    else:
        with pytest.raises(ValueError, match=said):
            glb.decode({"a.glb": data.replace(old, new, 1)})


def test_a_damaged_material_file_costs_a_sentence() -> None:
    files = obj.encode(lump(maps=False), Raster(), {}, "asset.obj")
    with pytest.raises(ValueError, match='asset.mtl has "rough" where a number'):
        obj.decode({**files, "asset.mtl": files["asset.mtl"].replace(b"Pr 0.817574", b"Pr rough")})
    assert isinstance(obj.decode({**files, "asset.mtl": b""}), Mesh), "without its material it is a grey mesh"


def test_an_obj_of_another_program_brings_its_picture(tmp_path: Path) -> None:
    """By the names that its material file says, in the same folder and nowhere else."""
    files = obj.encode(quad(), Raster(), {}, "asset.obj")
    (tmp_path / "theirs.obj").write_bytes(files["asset.obj"].replace(b"asset.mtl", b"wood.mtl"))
    (tmp_path / "wood.mtl").write_bytes(b"newmtl asset\nmap_Kd ../elsewhere/oak grain.png\n")
    (tmp_path / "oak grain.png").write_bytes(files["asset-albedo.png"])
    mesh = read(tmp_path / "theirs.obj")
    assert isinstance(mesh, TexturedMesh)
    torch.testing.assert_close(mesh.maps()["albedo"], quad().maps()["albedo"], rtol=0, atol=0.51 / 255)
    assert (mesh.maps()["roughness"] > 0.999).all(), "chalk, where nothing is said"
    (tmp_path / "wood.mtl").write_bytes(b"newmtl a\nmap_Kd oak grain.png\nnewmtl b\n")
    with pytest.raises(ValueError, match=r"wood.mtl names several materials"):
        read(tmp_path / "theirs.obj")


@pytest.mark.slow
@pytest.mark.parametrize("maps", [True, False], ids=["maps", "factors"])
@pytest.mark.parametrize("light", [Lambert(), None], ids=["lit", "unlit"])
def test_the_validator_has_nothing_to_say(tmp_path: Path, maps: bool, light: Lambert | None) -> None:
    path = export("glb", lump(maps), tmp_path, Raster(light), {"prompt": "a lump"}).path
    assert validate(path) == []
