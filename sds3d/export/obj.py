"""A mesh with colours at its vertices as Wavefront .obj and .mtl: y-up, front to +z, metres.

Colours stand behind the positions, `v x y z r g b`, in sRGB; the format itself knows none, but Blender, MeshLab and
others read them so. The material is white and without gloss, so that it changes no colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..core import Renderer, Representation
from ..representations.mesh import Mesh
from .provenance import plain
from .surfaces import from_y_up, load, need_mesh, to_y_up, whole_normals

MATERIAL = "asset"
MTL = f"newmtl {MATERIAL}\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nd 1\nillum 1\n"


@torch.no_grad()
def encode(rep: Representation, renderer: Renderer, provenance: Mapping[str, str], name: str) -> dict[str, bytes]:
    """The .obj and the .mtl beside it. Raises TypeError for another representation than a mesh."""
    mesh, mtl = need_mesh(rep, name), Path(name).with_suffix(".mtl").name
    told = [f"# {plain(word)}: {plain(said)}" for word, said in provenance.items()]
    points = torch.cat([to_y_up(mesh.vertices), mesh.rgb], dim=1).cpu().tolist()
    lines = [*told, f"mtllib {mtl}", "o asset"]
    lines += [f"v {x:.9g} {y:.9g} {z:.9g} {r:.6f} {g:.6f} {b:.6f}" for x, y, z, r, g, b in points]
    lines += [f"vn {x:.6f} {y:.6f} {z:.6f}" for x, y, z in to_y_up(whole_normals(mesh)).tolist()]
    lines += [f"usemtl {MATERIAL}"]
    lines += [f"f {a}//{a} {b}//{b} {c}//{c}" for a, b, c in (mesh.faces + 1).tolist()]
    return {name: ("\n".join(lines) + "\n").encode("ascii"), mtl: "\n".join([*told, MTL]).encode("ascii")}


def decode(files: Mapping[str, bytes]) -> Mesh:
    """The mesh, turned into our frame. Raises ValueError for what is none."""
    name, data = next(iter(files.items()))
    return load(name, data, "obj", from_y_up, process=False, skip_materials=True)
