"""The web page: what it carries, what no prompt can do to it, and that a browser shows what our renderers draw."""

from __future__ import annotations

import base64
import hashlib
import html as entities
import json
import math
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import chromium
from PIL import Image
from test_export import scattered
from test_export_mesh import corner, pear
from test_export_texture import lump

from sds3d.cameras import RADIUS, intrinsics, look_at, world_to_camera
from sds3d.core import Background, Cameras, Renderer, Representation
from sds3d.export import export, glb, html, read, splat
from sds3d.export.placement import Placement
from sds3d.renderers.raster import Raster
from sds3d.renderers.shading import Lambert, Pbr
from sds3d.renderers.splats import Splats
from sds3d.representations.mesh import Triangles

ASSETS = {
    "gaussians": (scattered, Splats()),
    "colours": (pear, Raster()),
    "lambert": (pear, Raster(Lambert())),
    "open": (corner, Raster(Lambert())),
    "textures": (lump, Raster()),
    "pbr": (lump, Raster(Pbr())),
}


def page_of(rep: Representation, renderer: Renderer, **told: str) -> str:
    return html.encode(rep, renderer, told, "asset.html")["asset.html"].decode()


def scene_of(page: str) -> dict:
    found = re.search(r'<script id="scene" type="application/json">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1])


def camera_of(scene: dict, width: int, height: int) -> Cameras:
    """What the page's camera is said to be: the shorter side has the angle of view."""
    a, e = math.radians(scene["azimuth_deg"]), math.radians(scene["elevation_deg"])
    away = torch.tensor([[math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)]])
    c2w = look_at(scene["distance"] * away)
    c2w[:, :3, 3] += torch.tensor(scene["target"])
    K = intrinsics(torch.tensor([scene["fov_deg"]]), min(width, height), min(width, height))
    K[:, 0, 2], K[:, 1, 2] = width / 2, height / 2
    return Cameras(c2w, K, height, width)


@pytest.mark.parametrize("name", ASSETS)
def test_read_back_it_is_the_asset(tmp_path: Path, name: str) -> None:
    make, renderer = ASSETS[name]
    rep = make()
    made = export("html", rep, tmp_path, renderer, {"prompt": "a pear"})
    assert type(read(made.path)) is type(rep)
    assert made.psnr_db is not None
    assert made.psnr_db > 45
    assert [file.name for file in tmp_path.iterdir()] == ["asset.html"]


def test_it_carries_the_bytes_of_another_format() -> None:
    for rep, renderer, module in ((scattered(), Splats(), splat), (lump(), Raster(), glb)):
        found = html.ASSET.search(page_of(rep, renderer, prompt="a pear").encode())
        assert found is not None
        assert base64.b64decode(found[2]) == module.encode(rep, renderer, {}, "a")["a"]


class Structure(HTMLParser):
    """The tags of a page with their attributes, and the text of some."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple] = []
        self.texts: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        tag = self.tags[-1][0] if self.tags else ""
        self.texts[tag] = self.texts.get(tag, "") + data


NASTY = '</title></script><script>alert(1)</script><img src=x onerror="alert(1)">\'"&amp;<!--'


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_characters="\r\0")))
def test_no_prompt_changes_the_page(prompt: str) -> None:
    plain = Structure(page_of(corner(), Raster(), prompt="a pear", negative="x"))
    for told in (prompt, NASTY + prompt):
        page = page_of(corner(), Raster(), prompt=told, negative=told)
        there = Structure(page)
        assert there.tags == plain.tags
        # Half a pair of surrogates is written as a reference, which is read as the sign of what cannot be shown.
        shown = re.sub("[\ud800-\udfff]", "\ufffd", entities.unescape(entities.escape(told)))
        assert there.texts.get("summary", "").startswith(shown)


def test_its_policy_allows_its_own_script_alone_and_no_request() -> None:
    page = page_of(lump(), Raster(Pbr()))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)
    assert policy is not None
    assert script is not None
    allowed = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy[1] == f"default-src 'none'; script-src 'sha256-{allowed}'; style-src 'unsafe-inline'"
    assert "://" not in page
    assert " src=" not in page


@pytest.mark.parametrize("placement", [Placement(), Placement(0.02, "base")])
@pytest.mark.parametrize("make", [scattered, pear, lump])
def test_at_first_the_whole_asset_is_seen_from_its_front(make, placement: Placement) -> None:
    rep = placement.of(make())(make())
    scene = html.scene(rep, Raster())
    camera = camera_of(scene, 300, 200)
    assert camera.position[0, 0] > camera.position[0, 1].abs()
    points = rep.vertices if isinstance(rep, Triangles) else rep.get_parameter("means")
    local = points @ world_to_camera(camera)[0, :3, :3].T + world_to_camera(camera)[0, :3, 3]
    pixels = local @ camera.K[0].T
    pixels = pixels[:, :2] / pixels[:, 2:]
    assert (pixels >= 0).all()
    assert (pixels <= torch.tensor([300, 200])).all()
    if isinstance(rep, Triangles):
        farthest = (points - torch.tensor(scene["target"])).norm(dim=-1).max()
        assert scene["distance"] == pytest.approx(RADIUS * float(farthest.detach())), (
            "where its sphere just fills the picture"
        )


def test_the_light_is_that_of_the_run() -> None:
    assert html.scene(pear(), Raster())["light"] is None
    direction = [0.55, -0.35, 0.76]
    lambert = json.loads(json.dumps(html.scene(pear(), Raster(Lambert()))["light"]))
    assert lambert == {"kind": "lambert", "direction": direction, "ambient": 0.6, "diffuse": 0.4}
    assert html.scene(pear(), Raster(Pbr(sun=0.3)))["light"]["sun"] == 0.3


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('id="asset"', 'id="other"', "carries no asset"),
        ('data-format="glb"', 'data-format="obj"', "carries no asset"),
        ("</script>\n<script>", "A</script>\n<script>", "is damaged"),
    ],
)
def test_another_page_costs_a_sentence(tmp_path: Path, old: str, new: str, said: str) -> None:
    page = page_of(corner(), Raster())
    assert old in page
    file = tmp_path / "asset.html"
    file.write_text(page.replace(old, new))
    with pytest.raises(ValueError, match=said):
        read(file)


def photograph(page: str, folder: Path, width: int, height: int) -> np.ndarray:
    """What headless Chromium shows of a page [height, width, 3]; the test is skipped where there is no Chromium."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    command = [
        *(chromium(), "--headless=new", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"),
        *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--force-device-scale-factor=1", f"--window-size={width},{height}", "--virtual-time-budget=4000"),
        *(f"--screenshot={folder / 'shot.png'}", (folder / "page.html").as_uri()),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(folder / "shot.png") as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float64) / 255


def assert_alike(got: np.ndarray, rep: Representation, renderer: Renderer, scene: dict) -> None:
    """The silhouettes are one, and so are the colours but for rounding, and for edges, which we both smooth our way."""
    height, width = got.shape[:2]
    with torch.no_grad():
        out = renderer(rep, camera_of(scene, width, height), Background(torch.ones(1, 3)))
    true = out.rgb[0].clamp(0, 1).double().numpy()
    there, shown = ((picture < 0.95).any(axis=-1) for picture in (true, got))
    assert (there & shown).sum() / (there | shown).sum() > 0.98
    error = np.abs(true - got)[there & shown]
    assert np.median(error) < 1 / 255
    assert np.quantile(error, 0.9) < 2 / 255


@pytest.mark.slow
@pytest.mark.parametrize("name", ASSETS)
def test_a_browser_shows_what_our_renderer_draws(tmp_path: Path, name: str) -> None:
    make, renderer = ASSETS[name]
    page = page_of(make(), renderer, prompt=NASTY).replace("<details>", "<details hidden>")
    width, height = (360, 300) if name == "lambert" else (300, 360)
    assert_alike(photograph(page, tmp_path, width, height), make(), renderer, scene_of(page))


@pytest.mark.slow
def test_hands_and_keys_turn_it(tmp_path: Path) -> None:
    page = page_of(pear(), Raster(Lambert())).replace("<details>", "<details hidden>")
    # Keys turn it by 15 degrees and bring it nearer by a tenth, a drag across a quarter of the picture turns it by 45.
    # The policy would forbid this script.
    script = """<script>addEventListener("load", () => {
      canvas.setPointerCapture = () => {};
      const press = (key) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key }));
      const point = (kind, id, clientX) =>
        canvas.dispatchEvent(new PointerEvent(kind, { pointerId: id, clientX, clientY: 100 }));
      press("ArrowRight"); press("ArrowRight"); press("ArrowDown"); press("+");
      const quarter = Math.min(canvas.clientWidth, canvas.clientHeight) / 4;
      point("pointerdown", 1, 200); point("pointermove", 1, 200 - quarter); point("pointerup", 1, 0);
      point("pointermove", 1, 0);
      point("pointerdown", 1, 100); point("pointerdown", 2, 200); point("pointermove", 2, 220);
      point("pointerup", 1, 100); point("pointerup", 2, 220);
    });</script>"""
    played = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", f"{script}</body>")
    scene = scene_of(page)
    turned = scene | {"azimuth_deg": -30 + 45, "elevation_deg": 30, "distance": scene["distance"] / 1.1 / 1.2}
    got = photograph(played, tmp_path, 300, 300)
    assert_alike(got, pear(), Raster(Lambert()), turned)
