"""Splat files: what each byte means, round trips within the format's rounding, and what programs of others read."""

from __future__ import annotations

import contextlib
import gzip
import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import ROUNDING, apart, columns, columns_of_ply, is_blind, program, validate
from torch import Tensor

from sds3d.cameras import orbit
from sds3d.core import Step
from sds3d.export import EXPORTS, Asset, export, glb_splat, ply, read, spz
from sds3d.export.check import draw, psnr
from sds3d.export.gltf import read_glb
from sds3d.export.placement import Placement, bounds
from sds3d.export.spz import pack, unpack
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import Gaussians, rotation_matrix

SPLATS = ("ply", "spz", "splat", "glb-splat")


def cloud(count: int = 300, seed: int = 2) -> Gaussians:
    draws = Step(seed, "test").normal("cloud", torch.empty(1, count, 14))[0]
    return Gaussians(
        0.3 * draws[:, :3], 0.5 * draws[:, 3:6] - 2.5, draws[:, 6:10], 1 + draws[:, 10], 1.5 * draws[:, 11:14]
    )


def difference(a: Gaussians, b: Gaussians) -> tuple[float, ...]:
    """The largest differences of positions, log scales, rotations, opacities and colours."""

    def largest(x: Tensor, y: Tensor) -> float:
        return float((x.double() - y.double()).detach().abs().max())

    pairs = [(a.means, b.means), (a.log_scales, b.log_scales), (a.rotations, b.rotations)]
    return tuple(largest(x, y) for x, y in [*pairs, (a.opacities, b.opacities), (a.rgb, b.rgb)])


@pytest.mark.parametrize("name", SPLATS)
def test_read_back_it_is_the_same_within_the_rounding(tmp_path: Path, name: str) -> None:
    gaussians = cloud()
    made = export(name, gaussians, tmp_path, Splats(), {"prompt": "a cube"})
    again = read(made.path)
    assert isinstance(again, Gaussians)
    for got, allowed in zip(difference(gaussians, again), ROUNDING[name], strict=True):
        assert got <= allowed
    entry = EXPORTS[name]
    assert isinstance(entry, Asset)
    assert made.psnr_db is not None
    assert made.psnr_db >= entry.psnr_db
    assert [file.name for file in tmp_path.iterdir()] == [entry.file]


@pytest.mark.parametrize("name", SPLATS)
def test_equal_assets_give_equal_bytes(tmp_path: Path, name: str) -> None:
    first, second = (export(name, cloud(), tmp_path, Splats()).path.read_bytes() for _ in range(2))
    assert first == second


def test_an_spz_holds_these_numbers() -> None:
    """One splat by hand: half a turn about our z, at the front, twice as high as wide."""
    quat = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    one = Gaussians(torch.tensor([[0.5, 0.25, -0.125]]), torch.tensor([[-1.0, -1.5, -2.0]]), quat,
                    torch.tensor([0.0]), torch.zeros(1, 3))  # fmt: skip
    data = gzip.decompress(spz.encode(one, Splats(), {}, "a.spz")["a.spz"])
    assert struct.unpack_from("<IIIBBBB", data) == (0x5053474E, 3, 1, 0, 12, 0, 0)
    # Our front (+x) is the .ply's +z and the spz's -z; our left (+y) is -x in both; our up (+z) is -y and then +y.
    places = [int.from_bytes(data[16 + 3 * i : 19 + 3 * i], "little", signed=True) for i in range(3)]
    assert places == [-0.25 * 4096, -0.125 * 4096, -0.5 * 4096]
    assert data[25] == 128, "opacity 1/2"
    assert tuple(data[26:29]) == (128, 128, 128), "grey is f_dc 0"
    assert tuple(data[29:32]) == (144, 136, 128), "(log + 10) * 16"
    assert len(data) == 36


def test_the_spz_is_the_ply_in_right_up_back() -> None:
    """Turned from right-down-front to right-up-back by half a turn about x, every covariance agrees."""
    gaussians = cloud()
    data = gzip.decompress(spz.encode(gaussians, Splats(), {}, "a.spz")["a.spz"])
    xyzw = torch.from_numpy(unpack(np.frombuffer(data[-4 * 300 :], "<u4")))
    rows = ply.read_table(ply.encode(gaussians, Splats(), {}, "a.ply")["a.ply"], "a.ply")
    wxyz = torch.from_numpy(np.stack([rows[f"rot_{i}"] for i in range(4)], axis=1).astype(np.float64))
    turn = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    theirs = rotation_matrix(xyzw[:, [3, 0, 1, 2]])
    scales = torch.diag_embed(gaussians.scales.detach().double())
    ours = turn @ rotation_matrix(wxyz) @ scales
    theirs = theirs @ scales
    torch.testing.assert_close(theirs @ theirs.mT, ours @ ours.mT, rtol=0, atol=5e-3)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: sum(x * x for x in q) > 1e-3))
def test_quaternions_survive_four_bytes(q: list[float]) -> None:
    quat = np.array([q]) / np.linalg.norm(q)
    again = unpack(pack(quat))
    assert abs(np.linalg.norm(again) - 1) < 1e-12
    # Half a step of 1 / (511 sqrt(2)) in three components, and what the largest takes from them.
    assert min(abs(again - quat).max(), abs(again + quat).max()) < 2.2e-3


def test_a_quaternion_by_hand() -> None:
    """The largest is y (1); then x, z, w in ten bits each, with signs of the rotation whose y is positive."""
    quat = np.array([[0.1, -0.9, 0.3, -0.3]]) / np.linalg.norm([0.1, 0.9, 0.3, 0.3])
    steps = np.round(np.abs(quat[0]) * 511 * np.sqrt(2)).astype(int)
    expected = 1 << 30 | (512 + steps[0]) << 20 | (512 + steps[2]) << 10 | steps[3]
    assert int(pack(quat)[0]) == expected


def test_the_older_spz_is_read() -> None:
    """Version 2 keeps x, y, z of a rotation in a byte each."""
    gaussians = cloud(3)
    data = bytearray(gzip.decompress(spz.encode(gaussians, Splats(), {}, "a.spz")["a.spz"]))
    data[4] = 2
    xyzw = unpack(np.frombuffer(bytes(data[-12:]), "<u4"))
    xyz = np.round((xyzw[:, :3] * np.where(xyzw[:, 3:] < 0, -1, 1) + 1) * 127.5).astype(np.uint8)
    again = spz.decode({"a.spz": gzip.compress(bytes(data[:-12]) + xyz.tobytes())})
    assert difference(gaussians, again)[2] < 3e-2


def test_provenance_is_in_every_format_that_can_carry_it(tmp_path: Path) -> None:
    told = {"generator": "sds3d 0", "prompt": "a b\N{LATIN SMALL LETTER O WITH DIAERESIS}x\nwith \0 lines"}
    made = {name: export(name, cloud(9), tmp_path, Splats(), told).path.read_bytes() for name in SPLATS}
    assert b"comment prompt a b\\xf6x\\nwith \\x00 lines\n" in made["ply"]
    assert b"prompt: a b\\xf6x\\nwith \\x00 lines\0" in made["spz"]
    document = json.loads(made["glb-splat"][20 : 20 + struct.unpack_from("<I", made["glb-splat"], 12)[0]])
    assert document["scenes"][0]["extras"] == told
    assert document["asset"]["generator"] == "sds3d 0"


@pytest.mark.parametrize("name", SPLATS)
def test_a_bound_that_is_missed_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("sds3d.export.psnr", lambda *_: 29.0)
    with pytest.raises(ArithmeticError, match=r"29.0 dB of the asset's, and .* must reach 3[05] dB"):
        export(name, cloud(9), tmp_path, Splats())
    assert not list(tmp_path.iterdir())


def test_the_measure_sees_what_is_wrong() -> None:
    gaussians, cameras = cloud(), orbit([0.0, 120.0], 15.0, 32)

    def near(rep: Gaussians) -> float:
        return psnr(draw(gaussians, Splats(), cameras), draw(rep, Splats(), cameras))

    assert near(gaussians) == 100
    mirrored = cloud()
    with torch.no_grad():
        mirrored.means[:, 1] *= -1
    pale = cloud()
    with torch.no_grad():
        pale.colour_logits += 0.5
    assert near(mirrored) < 20
    assert 15 < near(pale) < 30


def test_size_and_pivot_place_the_asset_and_leave_its_look(tmp_path: Path) -> None:
    gaussians = cloud()
    made = export("ply", gaussians, tmp_path, Splats(), placement=Placement(0.25, "base"))
    low, high = bounds(read(made.path))
    assert float((high - low).max()) == pytest.approx(0.25, rel=1e-5)
    assert low[2] == pytest.approx(0, abs=1e-6)
    assert (low + high)[:2].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert made.psnr_db is not None and made.psnr_db > 60
    centred = export("ply", gaussians, tmp_path, Splats(), placement=Placement(pivot="center"))
    low, high = bounds(read(centred.path))
    assert (low + high).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert float((high - low).max()) == pytest.approx(float((bounds(gaussians)[1] - bounds(gaussians)[0]).max()))
    with pytest.raises(ValueError, match="positive number of metres, given -1"):
        Placement(-1)


def damaged_spz(change: Callable[[bytes], bytes]) -> bytes:
    return gzip.compress(change(gzip.decompress(spz.encode(cloud(3), Splats(), {}, "a.spz")["a.spz"])))


SPZ = spz.encode(cloud(3), Splats(), {}, "a.spz")["a.spz"]
GLB = glb_splat.encode(cloud(3), Splats(), {}, "a.glb")["a.glb"]


def rewritten(change: Callable[[dict], None]) -> bytes:
    """The .glb with another document."""
    length = struct.unpack_from("<I", GLB, 12)[0]
    document = json.loads(GLB[20 : 20 + length])
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + GLB[20 + length :]
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


DAMAGED = {
    "empty.spz": (b"", "no header|gzip"),
    "text.spz": (b"hello", "gzip"),
    "four.spz": (b"NGSP" + b"\0" * 40, "version 4"),
    "short.spz": (SPZ[:-9], "cut short"),
    "crc.spz": (SPZ[:-8] + b"\0\0\0\0" + SPZ[-4:], "damaged|cut short"),
    "fewer.spz": (damaged_spz(lambda d: d[:-1]), "cut short"),
    "more.spz": (damaged_spz(lambda d: d + b"\0"), "too long"),
    "huge.spz": (damaged_spz(lambda d: d[:8] + struct.pack("<I", 2**32 - 1) + d[12:]), "declares 4294967295"),
    "none.spz": (damaged_spz(lambda d: d[:8] + struct.pack("<I", 0) + d[12:]), "declares 0"),
    "magic.spz": (damaged_spz(lambda d: b"abcd" + d[4:]), "version 2 or 3"),
    "bomb.spz": (gzip.compress(gzip.decompress(SPZ)[:16] + bytes(10**7)), "too long"),
    "empty.splat": (b"", "empty"),
    "short.splat": (b"\0" * 33, "33 bytes"),
    "zeros.splat": (b"\0" * 64, "no positive number"),
    "nan.splat": (struct.pack("<6f", float("nan"), 0, 0, 1, 1, 1) + b"\xff" * 8, "not finite"),
    "empty.splat.glb": (b"", "no header"),
    "short.splat.glb": (GLB[:-1], "cut short"),
    "text.splat.glb": (GLB[:20] + b"x" + GLB[21:], "damaged"),
    "lacks.splat.glb": (GLB.replace(b":SCALE", b":SCALF"), "None stands where"),
    "beyond.splat.glb": (GLB.replace(b'"count":3', b'"count":9'), "beyond"),
    "words.splat.glb": (rewritten(lambda d: d["accessors"][0].update(count=[3])), "whole number"),
    "list.splat.glb": (rewritten(lambda d: d["accessors"].__setitem__(0, 7)), "not what it should be"),
    "mesh.splat.glb": (GLB.replace(b'"meshes"', b'"mashes"'), "lacks 'meshes'"),
    "ints.splat.glb": (GLB.replace(b"5126", b"5125"), "float32"),
}


@pytest.mark.parametrize("file", DAMAGED)
def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path, file: str) -> None:
    data, said = DAMAGED[file]
    path = tmp_path / file
    path.write_bytes(data)
    with pytest.raises(ValueError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).endswith(".")
    assert path.read_bytes() == data


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_cost_a_sentence_at_most(data: st.DataObject) -> None:
    """Any damage gives Gaussians that are finite, or a ValueError."""
    name = data.draw(st.sampled_from(["a.ply", "a.spz", "a.splat", "a.splat.glb"]))
    decode, whole = FUZZED[name]
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(damaged[: data.draw(st.integers(0, len(damaged)))]) if data.draw(st.booleans()) else bytes(damaged)
    with contextlib.suppress(ValueError):
        assert all(torch.isfinite(tensor).all() for tensor in decode({name: content}).parameters())


def fuzzed() -> dict:
    from sds3d.export import splat

    modules = {"a.ply": ply, "a.spz": spz, "a.splat": splat, "a.splat.glb": glb_splat}
    made = {name: module.encode(cloud(3), Splats(), {}, name)[name] for name, module in modules.items()}
    return {name: (modules[name].decode, data) for name, data in made.items()}


FUZZED = fuzzed()


# What follows asks a program that nobody here wrote: PlayCanvas splat-transform, which reads .ply, .spz and .splat.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ply", "spz", "splat"])
def test_splat_transform_reads_our_numbers(tmp_path: Path, name: str) -> None:
    gaussians = cloud()
    path = export(name, gaussians, tmp_path, Splats(), {"prompt": "a cube"}).path
    for got, allowed in zip(apart(columns(path), columns_of_ply(gaussians)), ROUNDING[name], strict=True):
        assert got <= allowed + 1e-6


@pytest.mark.slow
def test_splat_transform_makes_our_glb_of_our_ply(tmp_path: Path) -> None:
    """Its glTF of our .ply and ours of the same Gaussians hold the same numbers: the frames are one."""
    path = export("ply", cloud(), tmp_path, Splats()).path
    subprocess.run([program("splat-transform"), "-q", "-w", path, tmp_path / "theirs.glb"], check=True)
    ours = export("glb-splat", cloud(), tmp_path, Splats()).path
    theirs, own = (read_glb(file.read_bytes(), file.name) for file in (tmp_path / "theirs.glb", ours))
    for name, width in glb_splat.WIDTHS.items():
        a, b = (glb.column(glb.primitive["attributes"][name], width).astype(np.float64) for glb in (theirs, own))
        if name == glb_splat.ROTATION:  # q and -q are one rotation.
            a = a * np.sign((a * b).sum(axis=1, keepdims=True))
        assert abs(a - b).max() < 2e-6, name
    kind = own.primitive["extensions"][glb_splat.NAME]
    assert kind.items() <= theirs.primitive["extensions"][glb_splat.NAME].items()


@pytest.mark.slow
def test_the_validator_complains_of_what_it_cannot_know_alone(tmp_path: Path) -> None:
    """gltf-validator does not know KHR_gaussian_splatting: it may say so, of the extension and of its attributes."""
    issues = validate(export("glb-splat", cloud(), tmp_path, Splats(), {"prompt": "a cube"}).path)
    assert [issue for issue in issues if not is_blind(issue)] == []
    assert len(issues) == 1 + sum(name.startswith(glb_splat.NAME) for name in glb_splat.WIDTHS)
