"""Exports: the bytes of a splat .ply, its round trip, the videos, and files that appear whole or not at all."""

from __future__ import annotations

import importlib.util
import struct

import pytest
import torch

from sds3d.cameras import orbit
from sds3d.core import Background
from sds3d.export import EXPORTS, export
from sds3d.export import video as turntable_video
from sds3d.export.ply import encode, read_ply
from sds3d.export.splats import C0
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import Gaussians


def three() -> Gaussians:
    """Red at +x, green at +y, blue at +z."""
    colours = torch.full((3, 3), -20.0).fill_diagonal_(20.0)
    return Gaussians(
        torch.eye(3),
        torch.full((3, 3), -2.0),
        torch.tensor([[1.0, 0, 0, 0]]).repeat(3, 1),
        torch.full((3,), 1.5),
        colours,
    )


def scattered(count: int = 40) -> Gaussians:
    draw = torch.Generator().manual_seed(1)
    return Gaussians(
        torch.randn(count, 3, generator=draw) * 0.3,
        torch.randn(count, 3, generator=draw) * 0.5 - 2,
        torch.randn(count, 4, generator=draw),
        torch.randn(count, generator=draw),
        torch.randn(count, 3, generator=draw),
    )


def to_bytes(gaussians: Gaussians) -> bytes:
    return encode(gaussians, Splats(), {}, "asset.ply")["asset.ply"]


HEADER = b"""ply
format binary_little_endian 1.0
element vertex 3
property float x
property float y
property float z
property float nx
property float ny
property float nz
property float f_dc_0
property float f_dc_1
property float f_dc_2
property float opacity
property float scale_0
property float scale_1
property float scale_2
property float rot_0
property float rot_1
property float rot_2
property float rot_3
end_header
"""


def test_three_gaussians_give_these_bytes():
    full = 1.7724538  # (sigmoid(20) - 0.5) / C0
    tail = (1.5, -2.0, -2.0, -2.0, 0.5, 0.5, -0.5, 0.5)  # logit opacity, log scales, wxyz
    red = struct.pack("<17f", 0, 0, 1, 0, 0, 0, full, -full, -full, *tail)  # our +x, the front, is the file's +z
    green = struct.pack("<17f", -1, 0, 0, 0, 0, 0, -full, full, -full, *tail)  # our +y, the left, is the file's -x
    blue = struct.pack("<17f", 0, -1, 0, 0, 0, 0, -full, -full, full, *tail)  # our +z, up, is the file's -y
    assert to_bytes(three()) == HEADER + red + green + blue


def test_rotations_turn_with_the_frame():
    """The covariance in the file's frame is that in ours, turned: so the quaternion and the matrix are one rotation."""
    gaussians = scattered()
    body = to_bytes(gaussians).partition(b"end_header\n")[2]
    rows = torch.tensor(list(struct.iter_unpack("<17f", body)), dtype=torch.float64)

    def covariance(log_scales, quats):
        w, x, y, z = torch.nn.functional.normalize(quats, dim=1).unbind(1)
        r = torch.stack(
            [
                *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
                *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
                *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
            ],
            dim=1,
        ).reshape(-1, 3, 3)
        return r @ torch.diag_embed((2 * log_scales).exp()) @ r.mT

    turn = torch.tensor([[0, -1, 0], [0, 0, -1], [1, 0, 0]], dtype=torch.float64)
    ours = covariance(gaussians.log_scales.double(), gaussians.quats.double())
    theirs = covariance(rows[:, 10:13], rows[:, 13:17])
    torch.testing.assert_close(theirs, turn @ ours @ turn.T, rtol=1e-5, atol=1e-7)


def test_read_back_it_is_the_same_picture(tmp_path):
    gaussians = scattered()
    path = export("ply", gaussians, tmp_path, Splats(), {"prompt": "a red cube\nend_header\n"}).path
    again = read_ply(path)
    torch.testing.assert_close(again.means, gaussians.means, rtol=0, atol=0)
    torch.testing.assert_close(again.log_scales, gaussians.log_scales, rtol=0, atol=0)
    torch.testing.assert_close(again.opacity_logits, gaussians.opacity_logits, rtol=0, atol=0)
    torch.testing.assert_close(again.rgb, gaussians.rgb, rtol=0, atol=1e-6)
    cameras, background = orbit([0.0, 100.0], 20.0, 48), Background(torch.ones(2, 3))
    a, b = (Splats()(rep, cameras, background).rgb for rep in (gaussians, again))
    assert a.std() > 0.05
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_colours_are_the_constant_harmonic():
    body = to_bytes(scattered()).partition(b"end_header\n")[2]
    dc = torch.tensor(list(struct.iter_unpack("<17f", body)))[:, 6:9]
    torch.testing.assert_close(0.5 + C0 * dc, scattered().rgb.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda b: b[:-1], "cut short"),
        (lambda b: b + b"\0", "too long"),
        (lambda b: b"obj" + b[3:], "not a .ply"),
        (lambda b: b[:40], "no header"),
        (lambda b: b"", "no header"),
        (lambda b: b.replace(b"binary_little_endian", b"ascii"), "binary little-endian"),
        (lambda b: b.replace(b"float rot_3", b"uchar rot_3"), "no float property rot_3"),
        (lambda b: b.replace(b"property float opacity\n", b""), "no float property opacity"),
        (lambda b: b.replace(b"float nx", b"float ny"), "twice"),
        (lambda b: b.replace(b"vertex 3", b"vertex 99999999999"), "cut short"),
        (lambda b: b.replace(b"vertex 3", b"vertex -3"), "one element"),
        (lambda b: b.replace(b"float nx", b"list uchar int nx"), "do not have"),
        (lambda b: b[:-68] + struct.pack("<f", float("nan")) + b[-64:], "not finite"),
        (lambda b: b[:-16] + struct.pack("<4f", 0, 0, 0, 0), "length 0"),
    ],
)
def test_damaged_files_are_refused_in_a_sentence(tmp_path, damage, said):
    path = tmp_path / "asset.ply"
    path.write_bytes(damage(to_bytes(three())))
    with pytest.raises(ValueError, match=said):
        read_ply(path)


def test_a_header_of_another_writer_is_read(tmp_path):
    """Without normals, with harmonics and comments."""
    rows = list(struct.iter_unpack("<17f", to_bytes(three()).partition(b"end_header\n")[2]))
    header = HEADER.replace(b"property float nx\nproperty float ny\nproperty float nz\n", b"comment made elsewhere\n")
    header = header.replace(b"property float opacity\n", b"property float f_rest_0\nproperty float opacity\n")
    body = b"".join(struct.pack("<15f", *r[:3], *r[6:9], 0.25, *r[9:]) for r in rows)
    path = tmp_path / "other.ply"
    path.write_bytes(header + body)
    torch.testing.assert_close(read_ply(path).means.detach(), torch.eye(3))


def test_unknown_formats_name_the_nearest(tmp_path):
    with pytest.raises(ValueError, match='Did you mean "ply"'):
        export("plyy", three(), tmp_path, Splats())
    assert set(EXPORTS) >= {"ply", "mp4"}


def test_another_representation_is_refused(tmp_path, unchecked):
    with pytest.raises(ValueError, match="cannot hold; it can be written as mp4"):
        export("ply", torch.nn.Linear(1, 1), tmp_path, Splats())


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    """An export that fails half way leaves the file that was there, and nothing beside it."""
    path = export("ply", three(), tmp_path, Splats()).path
    before = path.read_bytes()

    def fail(pictures, path, provenance):
        path.write_bytes(b"half")
        raise RuntimeError

    monkeypatch.setattr(turntable_video, "frames", lambda rep, renderer, look: None)
    for writer in ("write_mp4", "write_webp"):
        monkeypatch.setattr(turntable_video, writer, fail)
    with pytest.raises(RuntimeError):
        export("mp4", three(), tmp_path, Splats())
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["asset.ply"]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(turntable_video, "frames", lambda rep, renderer, look: draw_frames(rep, renderer, 6, 32, look))


draw_frames = turntable_video.frames


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")
def test_the_turntable_is_a_video_that_browsers_play(tmp_path, short):
    import av

    path = export("mp4", scattered(), tmp_path, Splats(), {"prompt": "a cube"}).path
    content = path.read_bytes()
    assert path.name == "turntable.mp4" and content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(pictures) == 6 and pictures[0].shape == (32, 32, 3)
    drawn = draw_frames(scattered(), Splats(), 6, 32)
    assert abs(pictures[0].astype(float) - drawn[0]).mean() < 10


def test_without_a_video_library_it_is_an_animated_picture(tmp_path, short, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = export("mp4", scattered(), tmp_path, Splats()).path
    assert path.name == "turntable.webp" and not (tmp_path / "turntable.mp4").exists()
    with Image.open(path) as picture:
        assert (picture.format, picture.n_frames, picture.size) == ("WEBP", 6, (32, 32))


def test_a_picture_that_moves_tells_how_it_was_made(tmp_path, short):
    from PIL import Image

    path = export(
        "webp", scattered(), tmp_path, Splats(), {"prompt": "a c\N{LATIN SMALL LETTER U WITH DIAERESIS}be"}
    ).path
    with Image.open(path) as picture:
        assert picture.getexif()[turntable_video.IMAGE_DESCRIPTION] == r"prompt: a c\xfcbe"


def test_depth_is_grey_from_near_to_far_over_white():
    film = draw_frames(scattered(), Splats(), 3, 32, "depth")
    assert (film[..., :1] == film).all(), "grey"
    assert (film[:, 0, 0] == 255).all(), "white where nothing is"
    depth = torch.tensor([[2.0, 3.0], [4.0, 0.0]])[None, ..., None]
    shown = turntable_video.grey(depth, (depth > 0).float())[0, ..., 0]
    torch.testing.assert_close(shown, torch.tensor([[0.0, 0.5 * 0.85], [0.85, 1.0]]))
    assert (turntable_video.grey(torch.zeros(1, 2, 2, 1), torch.zeros(1, 2, 2, 1)) == 1).all()


def test_normals_are_seen_as_colours():
    film = draw_frames(scattered(), Splats(), 1, 32, "normal")[0].astype(float) / 255
    out = Splats()(scattered(), orbit([0.0], 15.0, 32), Background(torch.ones(1, 3)))
    solid = (out.alpha[0, ..., 0] > 0.99).numpy()
    assert solid.sum() > 20
    assert abs(film[solid] - (out.normal[0].detach().numpy()[solid] + 1) / 2).max() < 0.02
    # A surface that is seen faces the camera, which stands in front (+x): so most of it is red.
    assert film[solid][:, 0].mean() > 0.6


def test_odd_sides_are_refused(tmp_path):
    with pytest.raises(ValueError, match="even"):
        turntable_video.write_mp4(draw_frames(three(), Splats(), 1, 31), tmp_path / "a.mp4", {})
