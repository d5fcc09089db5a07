"""Packages of USD: frames, units and colours, round trips, and what Pixar's own validators find: nothing."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export_mesh import corner, pear
from test_export_texture import lump, quad

from sds3d.export import EXPORTS, check_names, export, read, usdz
from sds3d.export.placement import Placement, bounds
from sds3d.renderers.raster import Raster
from sds3d.renderers.shading import Lambert, Pbr
from sds3d.representations.mesh import Mesh
from sds3d.representations.texture import TexturedMesh

pxr = pytest.importorskip("pxr", reason='pip install "sds3d[usd]"')
from pxr import Sdf, Usd, UsdGeom, UsdShade, UsdValidation  # noqa: E402

ASSETS = {"colours": pear, "open": corner, "textures": lump, "flat": lambda: lump(maps=False), "quad": quad}


def write(rep: Mesh | TexturedMesh, folder: Path, **told: str) -> Path:
    path = folder / "asset.usdz"
    path.write_bytes(usdz.encode(rep, Raster(), told, "asset.usdz")["asset.usdz"])
    return path


@pytest.mark.parametrize("name", ASSETS)
def test_read_back_it_is_the_same(tmp_path: Path, name: str) -> None:
    rep = ASSETS[name]()
    made = export("usdz", rep, tmp_path, Raster(Pbr()), {"prompt": "a pear"})
    again = read(made.path)
    assert made.psnr_db is not None
    assert made.psnr_db > 40
    torch.testing.assert_close(again.vertices[again.faces], rep.vertices[rep.faces], rtol=0, atol=1e-6)
    assert isinstance(again, TexturedMesh)
    if isinstance(rep, TexturedMesh):
        torch.testing.assert_close(again.uv[again.uv_faces], rep.uv[rep.uv_faces], rtol=0, atol=1e-6)
        assert len(again.vertices) == len(rep.vertices), "seams are sewn"
        for key, picture in rep.maps().items():
            torch.testing.assert_close(again.maps()[key], picture, rtol=0, atol=2 / 255)
    assert [file.name for file in tmp_path.iterdir()] == ["asset.usdz"]


@pytest.mark.parametrize("name", ASSETS)
def test_pixar_s_validators_find_nothing(tmp_path: Path, name: str) -> None:
    path = write(ASSETS[name](), tmp_path, prompt="a 'pear' \\ \"", negative="日本\n\ud800")
    known = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(known) >= 20
    found = UsdValidation.ValidationContext(known).Validate(Usd.Stage.Open(str(path)))
    assert [error.GetMessage() for error in found] == []


def test_the_validators_would_find_something(tmp_path: Path) -> None:
    path = write(corner(), tmp_path)
    stage = Usd.Stage.Open(str(path))
    stage.GetRootLayer().pseudoRoot.ClearInfo("upAxis")
    found = UsdValidation.ValidationContext(UsdValidation.ValidationRegistry().GetOrLoadAllValidators()).Validate(stage)
    assert found


def test_it_is_y_up_in_metres(tmp_path: Path) -> None:
    stage = Usd.Stage.Open(str(write(corner(), tmp_path)))
    assert UsdGeom.GetStageUpAxis(stage) == "Y"
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    assert stage.GetDefaultPrim().GetPath() == "/Asset"
    surface = UsdGeom.Mesh(stage.GetPrimAtPath("/Asset/Mesh"))
    points = np.array(surface.GetPointsAttr().Get())
    assert points.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]], "front to +z, left to +x, up to +y"
    assert np.allclose(surface.GetNormalsAttr().Get(), 3**-0.5)
    assert surface.GetDoubleSidedAttr().Get() is True
    assert np.array(surface.GetExtentAttr().Get()).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_pictures_lie_beside_the_stage_and_say_what_they_mean(tmp_path: Path) -> None:
    path = write(lump(), tmp_path)
    with zipfile.ZipFile(path) as package:
        names = ["asset.usdc", "albedo.png", "roughness.png", "metallic.png", "normal.png"]
        assert package.namelist() == names
        entries = package.infolist()
    data = path.read_bytes()
    for entry in entries:
        head = data[entry.header_offset :][:30]
        start = entry.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        assert start % 64 == 0
        assert entry.compress_type == zipfile.ZIP_STORED
    stage = Usd.Stage.Open(str(path))
    for key, space in (("Albedo", "sRGB"), ("Roughness", "raw"), ("Metallic", "raw"), ("Normal", "raw")):
        shader = UsdShade.Shader(stage.GetPrimAtPath(f"/Asset/Material/{key}"))
        file = shader.GetInput("file").Get()
        assert file.path == f"./{key.lower()}.png"
        assert file.resolvedPath, "a program that opens the package finds it"
        assert shader.GetInput("sourceColorSpace").Get() == space


def test_a_place_in_the_picture_is_where_it_should_be(tmp_path: Path) -> None:
    """Of the square, red below and blue above: v runs up, and row 0 of the picture is at the top."""
    path = write(quad(), tmp_path)
    stage = Usd.Stage.Open(str(path))
    surface = UsdGeom.Mesh(stage.GetPrimAtPath("/Asset/Mesh"))
    height = np.array(surface.GetPointsAttr().Get())[np.array(surface.GetFaceVertexIndicesAttr().Get()), 1]
    v = np.array(UsdGeom.PrimvarsAPI(surface).GetPrimvar("st").ComputeFlattened())[:, 1]
    assert ((height > 0) == (v > 0.5)).all()
    with zipfile.ZipFile(path) as package:
        picture = usdz.textures.from_png(package.read("albedo.png"), "albedo.png")
    assert picture[0, 0].argmax() == 2, "blue"
    assert picture[-1, 0].argmax() == 0, "red"


def test_what_is_the_same_everywhere_is_a_number(tmp_path: Path) -> None:
    path = write(lump(maps=False), tmp_path)
    with zipfile.ZipFile(path) as package:
        assert package.namelist() == ["asset.usdc", "albedo.png"]
    stage = Usd.Stage.Open(str(path))
    shader = UsdShade.Shader(stage.GetPrimAtPath("/Asset/Material/Surface"))
    maps = lump(maps=False).maps()
    for key in ("roughness", "metallic"):
        assert shader.GetInput(key).Get() == pytest.approx(float(maps[key].detach().mean()), abs=1e-6)


def test_size_and_pivot(tmp_path: Path) -> None:
    made = export("usdz", pear(), tmp_path, Raster(Lambert()), placement=Placement(0.3, "base"))
    low, high = bounds(read(made.path))
    assert float((high - low).max()) == pytest.approx(0.3)
    assert float(low[2]) == pytest.approx(0, abs=1e-7)


def test_equal_meshes_give_equal_bytes(tmp_path: Path) -> None:
    first = write(lump(), tmp_path, prompt="a").read_bytes()
    assert write(lump(), tmp_path, prompt="a").read_bytes() == first


def test_it_tells_how_it_was_made(tmp_path: Path) -> None:
    told = {"generator": "sds3d 1", "prompt": "a\npear", "negative": "\ud800"}
    stage = Usd.Stage.Open(str(write(pear(), tmp_path, **told)))
    assert dict(stage.GetRootLayer().customLayerData) == {
        "generator": "sds3d 1",
        "prompt": "a\\npear",
        "negative": "\\ud800",
    }


@pytest.mark.parametrize("missing", ["pxr", "xatlas"])
def test_without_a_library_it_is_refused_before_the_work(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == missing else found(name, *more)
    )
    with pytest.raises(ValueError, match=r'pip install "sds3d\[usd\]"'):
        check_names(["usdz"])
    (tmp_path / "a.usdz").write_bytes(b"")
    with pytest.raises(ValueError, match=r'pip install "sds3d\[usd\]"'):
        read(tmp_path / "a.usdz")
    check_names([name for name in EXPORTS if name != "usdz"])


def damaged(path: Path, change) -> None:
    """The package with its stage changed by a function."""
    with zipfile.ZipFile(path) as package:
        parts = {name: package.read(name) for name in package.namelist()}
    stage_file = path.parent / "asset.usdc"
    stage_file.write_bytes(parts["asset.usdc"])
    layer = Sdf.Layer.FindOrOpen(str(stage_file))
    layer.Reload(True)
    stage = Usd.Stage.Open(layer)
    change(stage)
    stage.Save()
    parts["asset.usdc"] = stage_file.read_bytes()
    path.write_bytes(usdz.packed(parts))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda stage: stage.RemovePrim("/Asset/Mesh"), "another program"),
        (lambda stage: stage.GetRootLayer().pseudoRoot.ClearInfo("customLayerData"), "another program"),
        (lambda stage: stage.RemovePrim("/Asset/Material"), "has no material"),
        (lambda stage: stage.RemovePrim("/Asset/Material/Albedo"), "damaged"),
        (lambda stage: stage.GetAttributeAtPath("/Asset/Mesh.points").Clear(), "damaged"),
        (lambda stage: stage.GetAttributeAtPath("/Asset/Mesh.faceVertexIndices").Set([0, 1, 10**6]), "no vertex"),
        (lambda stage: stage.GetAttributeAtPath("/Asset/Mesh.primvars:st").Clear(), "damaged"),
        (lambda stage: stage.GetAttributeAtPath("/Asset/Mesh.normals").Set([(0, 0, 1)]), "without a normal"),
        (lambda stage: stage.GetAttributeAtPath("/Asset/Material/Albedo.inputs:file").Set("./x.png"), "x.png"),
        (lambda stage: stage.GetAttributeAtPath("/Asset/Material/Albedo.inputs:file").Set("/etc/passwd"), "passwd"),
    ],
)
def test_damaged_packages_cost_a_sentence(tmp_path: Path, change, said: str) -> None:
    path = write(lump(), tmp_path)
    damaged(path, lambda stage: None)
    read(path)
    damaged(path, change)
    with pytest.raises(ValueError, match=said):
        read(path)


@pytest.mark.parametrize("cut", [0, 10, 200, 3000, -30])
def test_a_package_that_is_cut_short_costs_a_sentence(tmp_path: Path, cut: int) -> None:
    path = write(lump(), tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="asset.usdz"):
        read(path)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_colours_of_vertices_come_into_a_texture_at_any_size(tmp_path: Path, size: float) -> None:
    mesh = pear()
    with torch.no_grad():
        mesh.base.mul_(size)
        mesh.offsets.mul_(size)
    again = read(write(mesh, tmp_path))
    assert isinstance(again, TexturedMesh)
    faces, thirds = torch.arange(len(mesh)), torch.full((len(mesh), 3), 1 / 3)
    true, got = (rep.material(faces, thirds) for rep in (mesh, again))
    torch.testing.assert_close(got.albedo, true.albedo, rtol=0, atol=2 / 255)
    torch.testing.assert_close(got.roughness, true.roughness, rtol=0, atol=1e-3)
    torch.testing.assert_close(got.metallic, true.metallic, rtol=0, atol=1e-3)
