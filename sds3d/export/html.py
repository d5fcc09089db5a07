"""The asset as one web page that needs nothing else: it opens from the disk, without a network, and turns by hand.

The page carries the bytes of another of our formats, .splat of Gaussians or .glb of a mesh, and a program of its own,
page.js, that draws them as the run's renderer does. Its policy forbids every request, and every script but that one.
It begins at the front of the object, which fills the picture.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from importlib import resources
from typing import Any

import torch

from ..cameras import FOV_Y_DEG, RADIUS
from ..core import Renderer, Representation
from ..renderers.shading import Lambert, Pbr
from ..representations.gaussians import Gaussians
from ..representations.mesh import Triangles
from . import glb, splat
from .placement import SEEN, bounds

FORMATS = {"glb": glb, "splat": splat}
AZIMUTH_DEG, ELEVATION_DEG = 0.0, 15.0  # of the first view, as a turntable begins
LIGHTS = {Lambert: "lambert", Pbr: "pbr"}  # what page.js can shade; in another light it shows the plain colours
ASSET = re.compile(rb'<script id="asset" type="text/plain" data-format="(\w+)">([A-Za-z0-9+/=]*)</script>')

STYLE = """
html, body { height: 100%; margin: 0; background: #fff; color: #222; font: 15px/1.5 system-ui, sans-serif; }
body { display: flex; flex-direction: column; height: 100dvh; }
canvas { flex: 1; min-height: 0; width: 100%; display: block; touch-action: none; cursor: grab; outline: none; }
canvas:active { cursor: grabbing; }
p { flex: 1; margin: 1rem; }
details { border-top: 1px solid #ddd; padding: .6rem 1rem; max-height: 50%; overflow: auto; overflow-wrap: anywhere; }
summary { cursor: pointer; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
details[open] summary { white-space: normal; }
dl { margin: .6rem 0 0; display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: 13px; }
dt { color: #777; } dd { margin: 0; }
"""
CONTROLS = "Drag to turn, scroll or pinch to come nearer, double-click to begin again."


def encode(rep: Representation, renderer: Renderer, provenance: Mapping[str, str], name: str) -> dict[str, bytes]:
    """One file. Raises TypeError for another representation than Gaussians or a mesh."""
    kind = "splat" if isinstance(rep, Gaussians) else "glb"
    data = FORMATS[kind].encode(rep, renderer, {}, name)[name]
    script = resources.files("sds3d.export").joinpath("page.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; script-src 'sha256-{allowed}'; style-src 'unsafe-inline'"
    title = escape(provenance.get("prompt", "An asset of sds3d"))
    told = "".join(f"<dt>{escape(word)}</dt><dd>{escape(said)}</dd>" for word, said in provenance.items())
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<noscript><p>This page draws the asset with JavaScript, which is turned off here.</p></noscript>
<canvas tabindex="0" aria-label="{title}"></canvas>
<details><summary>{title}</summary><dl>{told}<dt>controls</dt><dd>{CONTROLS}</dd></dl></details>
<script id="scene" type="application/json">{json.dumps(scene(rep, renderer), allow_nan=False)}</script>
<script id="asset" type="text/plain" data-format="{kind}">{base64.b64encode(data).decode()}</script>
<script>{script}</script>
</body>
</html>
"""
    # A prompt may hold half of a pair of surrogates, which UTF-8 cannot.
    return {name: page.encode("utf-8", "xmlcharrefreplace")}


@torch.no_grad()
def scene(rep: Representation, renderer: Renderer) -> dict[str, Any]:
    """The first view and the light, as page.js reads them.

    target: the middle of the asset's box, in our frame. reach: the radius of the sphere around it that holds what can
    be seen, Gaussians to two standard deviations. distance: of the camera from the target.
    """
    low, high = bounds(rep)
    target = (low + high) / 2
    if isinstance(rep, Triangles):
        reach = (rep.vertices[rep.faces.unique()] - target).norm(dim=-1)
    else:
        assert isinstance(rep, Gaussians)  # What `bounds` takes besides meshes.
        seen = rep.opacities >= SEEN * rep.opacities.max()
        reach = ((rep.means - target).norm(dim=-1) + 2 * rep.scales.amax(dim=-1))[seen]
    longest = max(float(reach.max()), 1e-6)
    light: Any = getattr(renderer, "light", None)
    return {
        "target": target.tolist(),
        "reach": longest,
        "distance": RADIUS * longest,  # there a camera of our angle of view just sees a sphere of this radius
        "azimuth_deg": AZIMUTH_DEG,
        "elevation_deg": ELEVATION_DEG,
        "fov_deg": FOV_Y_DEG,
        "light": {"kind": LIGHTS[type(light)], **asdict(light)} if isinstance(light, tuple(LIGHTS)) else None,
    }


def decode(files: Mapping[str, bytes]) -> Representation:
    """The asset that a page of ours carries. Raises ValueError for another page and for damaged bytes."""
    name, page = next(iter(files.items()))
    found = ASSET.search(page)
    if found is None or found[1].decode() not in FORMATS:
        raise ValueError(f"{name} is not a page that sds3d wrote: it carries no asset.")
    try:
        data = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        raise ValueError(f"{name} carries an asset that is damaged.") from None
    return FORMATS[found[1].decode()].decode({name: data})
