"""A mesh as Wavefront .obj and .mtl: y-up, front to +z, metres; its look at its vertices, or in pictures beside it.

Colours of vertices stand behind the positions, `v x y z r g b`, in sRGB; the format itself knows none, but Blender,
MeshLab and others read them so. Textures are named by map_Kd, and by map_Pr, map_Pm and norm of its extension for
physically based rendering; v runs up. The material is white and without gloss, so that it changes no colour.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core import Renderer, Representation
from ..representations.mesh import Mesh, Triangles
from ..representations.texture import TexturedMesh
from . import textures
from .provenance import plain
from .surfaces import from_y_up, joined, load, to_y_up, vertex_colours, whole_normals

MATERIAL = "asset"
WHITE = ("Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "d 1", "illum 1")
MAPS = {"albedo": "map_Kd", "roughness": "map_Pr", "metallic": "map_Pm", "normal": "norm"}
NUMBERS = {"roughness": "Pr", "metallic": "Pm"}
CHALK = {"roughness": 1.0, "metallic": 0.0}


@torch.no_grad()
def encode(rep: Representation, renderer: Renderer, provenance: Mapping[str, str], name: str) -> dict[str, bytes]:
    """The .obj, the .mtl and the pictures beside it. Raises TypeError for another representation than a mesh."""
    stem = Path(name).stem
    told = [f"# {plain(word)}: {plain(said)}" for word, said in provenance.items()]
    lines, material, pictures = [*told, f"mtllib {stem}.mtl", "o asset"], [f"newmtl {MATERIAL}", *WHITE], {}
    if isinstance(rep, TexturedMesh):
        lines += _vertices(rep.vertices)
        lines += [f"vt {u:.9g} {v:.9g}" for u, v in rep.uv.tolist()]
        corners = [[f"{v}/{t}/{v}" for v, t in zip(*rows, strict=True)] for rows in _pairs(rep.faces, rep.uv_faces)]
        for key, picture in rep.maps().items():
            value = textures.one_value(picture) if key in NUMBERS else None
            if value is not None:
                material.append(f"{NUMBERS[key]} {value:.6f}")
            elif key != "normal" or not textures.is_flat(picture):
                material.append(f"{MAPS[key]} {stem}-{key}.png")
                pictures[f"{stem}-{key}.png"] = textures.to_png(picture)
    elif isinstance(rep, Mesh):
        lines += _vertices(torch.cat([rep.vertices, rep.rgb], dim=1))
        corners = [[f"{v}//{v}" for v in row] for row in (rep.faces + 1).tolist()]
    else:
        raise TypeError(f"{name} holds a mesh, given {type(rep).__name__}.")
    lines += [f"vn {x:.6f} {y:.6f} {z:.6f}" for x, y, z in to_y_up(whole_normals(rep)).tolist()]
    lines += [f"usemtl {MATERIAL}", *(f"f {' '.join(row)}" for row in corners)]
    return {name: _text(lines), f"{stem}.mtl": _text([*told, *material]), **pictures}


def _vertices(columns: Tensor) -> list[str]:
    """Lines of positions, with what stands behind them."""
    turned = torch.cat([to_y_up(columns[:, :3]), columns[:, 3:]], dim=1).tolist()
    return [" ".join(["v", *(f"{x:.9g}" for x in row[:3]), *(f"{c:.6f}" for c in row[3:])]) for row in turned]


def _pairs(faces: Tensor, uv_faces: Tensor) -> list[tuple[list[int], list[int]]]:
    """The numbers of vertices and of places at the corners of each triangle, counted from 1."""
    return list(zip((faces + 1).tolist(), (uv_faces + 1).tolist(), strict=True))


def _text(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("ascii")


def decode(files: Mapping[str, bytes]) -> Triangles:
    """The mesh, turned into our frame, with the pictures that lie beside it. Raises ValueError for what is none."""
    name, data = next(iter(files.items()))
    parts = load(name, data, "obj", process=False, skip_materials=True)
    maps = _maps(files)
    uv = getattr(parts[0].visual, "uv", None)
    if uv is None or "albedo" not in maps:
        return joined(name, parts, from_y_up, vertex_colours)
    if len(parts) > 1:
        raise ValueError(f"{name} holds {len(parts)} objects with textures; join them into one.")
    # Of a normal in an .obj only the rounded text is there, so vertices at one place are one.
    vertices, faces = torch.tensor(parts[0].vertices).double(), torch.tensor(parts[0].faces).long()
    return textures.sew(name, from_y_up(vertices), None, torch.tensor(uv).double(), faces, maps)


def beside(path: Path) -> dict[str, bytes]:
    """The material file of an .obj and the pictures that it names, where they lie in the same folder."""
    found: dict[str, bytes] = {}
    wanted = _named(path.read_bytes(), ("mtllib",))
    for name in wanted:
        file = path.parent / Path(name).name
        if file.is_file():
            found[file.name] = file.read_bytes()
            wanted += _named(found[file.name], tuple(MAPS.values())) if file.suffix == ".mtl" else []
    return found


def _named(text: bytes, words: tuple[str, ...]) -> list[str]:
    """What stands behind certain words at the beginning of a line."""
    lines = [line.split(maxsplit=1) for line in text.decode("utf-8", errors="replace").splitlines()]
    return [line[1].strip() for line in lines if len(line) == 2 and line[0] in words]


def _maps(files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """The maps that a material file names or gives as numbers, as `TexturedMesh.maps`; none without a picture."""
    mtl, text = next(((name, data) for name, data in files.items() if name.endswith(".mtl")), ("", b""))
    said = {
        word: Path(_named(text, (word,))[-1]).name
        for word in (*MAPS.values(), *NUMBERS.values())
        if _named(text, (word,))
    }
    pictures = {
        key: textures.from_png(files[said[word]], said[word]) for key, word in MAPS.items() if said.get(word) in files
    }
    if "albedo" not in pictures:
        return {}
    if len(_named(text, ("newmtl",))) > 1:
        raise ValueError(f"{mtl} names several materials; join them into one.")
    size = len(pictures["albedo"])
    numbers = {key: _share(said[word], mtl) if word in said else CHALK[key] for key, word in NUMBERS.items()}
    whole = {key: torch.full((size, size, 1), number, dtype=torch.float64) for key, number in numbers.items()}
    return {"normal": textures.flat(size), **whole, **pictures}


def _share(text: str, mtl: str) -> float:
    """A number in [0, 1]. Raises ValueError for what is none."""
    if not re.fullmatch(r"0|1|[01]?\.[0-9]+|[01]\.", text) or not 0 <= float(text) <= 1:
        raise ValueError(f'{mtl} has "{text[:40]}" where a number in [0, 1] belongs.')
    return float(text)
