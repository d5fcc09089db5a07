"""Files that an asset is written to: a table, format name -> what the file is, how it is made and how it is checked.

An asset's file is read back and drawn again before it is written: `export` refuses to leave a file whose pictures are
not near enough to the asset's. Writers are imported when used. A file appears whole or not at all.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from ..cameras import turntable
from ..core import Cameras, Renderer, Representation
from ..files import write
from ..representations.field import Field
from ..representations.gaussians import Gaussians
from ..representations.hash_field import HashField
from ..representations.mesh import Mesh
from ..representations.template_mesh import TemplateMesh
from ..representations.texture import TexturedMesh
from .check import draw, psnr
from .placement import Placement

CHECK_VIEWS, CHECK_SIZE = 4, 64  # cameras around the object, pixels a side
NOWHERE = Placement()
MESHES = (Mesh, TexturedMesh)
Files = Mapping[str, bytes]  # name -> content; the first is the file to open, the others lie beside it


@dataclass(frozen=True)
class Asset:
    """A file that holds the asset itself.

    module: of this folder, with encode(rep, renderer, provenance, name) -> Files and decode(files) -> rep. holds: the
    representations that fit in. psnr_db: how near, at least, its pictures must be. look: the pictures that are
    compared, normals where the format has no colour. needs: modules that are not always installed, all brought by our
    extra of this name.
    """

    file: str
    about: str
    module: str
    holds: tuple[type[Representation], ...]
    psnr_db: float
    look: Literal["rgb", "normal"] = "rgb"
    needs: tuple[str, ...] = ()
    extra: str = ""


@dataclass(frozen=True)
class Film:
    """A turntable of any representation. look: what of it is filmed."""

    file: str
    about: str
    look: Literal["rgb", "normal", "depth"] = "rgb"


EXPORTS: dict[str, Asset | Film] = {
    "ply": Asset("asset.ply", "Gaussians, as 3D Gaussian Splatting writes them", "ply", (Gaussians,), 35.0),
    "spz": Asset("asset.spz", "Gaussians in a fifth of the bytes, for the web", "spz", (Gaussians,), 30.0),
    "splat": Asset("asset.splat", "Gaussians in half of the bytes, for older viewers", "splat", (Gaussians,), 30.0),
    "glb-splat": Asset("asset.splat.glb", "Gaussians as glTF, KHR_gaussian_splatting", "glb_splat", (Gaussians,), 35.0),
    "glb": Asset("asset.glb", "a mesh as glTF, for Blender, browsers and game engines", "glb", MESHES, 28.0),
    "obj": Asset("asset.obj", "a mesh as text, with a material file beside it", "obj", MESHES, 28.0),
    "ply-mesh": Asset("asset.mesh.ply", "a mesh with colours at its vertices", "ply_mesh", (Mesh,), 28.0),
    "stl": Asset("asset.stl", "the shape of a mesh in millimetres, for printers", "stl", MESHES, 28.0, "normal"),
    "usdz": Asset(
        "asset.usdz", "a mesh for iPhones, Macs and USD", "usdz", MESHES, 28.0, needs=("pxr", "xatlas"), extra="usd"
    ),
    "html": Asset("asset.html", "a web page that turns the asset, offline", "html", (Gaussians, *MESHES), 28.0),
    "mp4": Film("turntable.mp4", "once around the object"),
    "webp": Film("turntable.webp", "the same as an animated picture"),
    "mp4-normal": Film("turntable-normal.mp4", "its normals, (n + 1) / 2 of the world's axes", "normal"),
    "mp4-depth": Film("turntable-depth.mp4", "its depth, from near in black to far in light grey", "depth"),
}


@dataclass(frozen=True)
class Exported:
    """A file that was written. psnr_db: how near its pictures are to the asset's; None for what is not read back."""

    path: Path
    psnr_db: float | None = None


def check_names(names: Sequence[str], rep: Representation | None = None) -> None:
    """Raise ValueError for an unknown format, with the nearest known one, and for one that cannot hold `rep` or lacks
    its library."""
    for name in names:
        if name not in EXPORTS:
            close = difflib.get_close_matches(name, EXPORTS, n=1)
            hint = f' Did you mean "{close[0]}"?' if close else ""
            raise ValueError(f'There is no export format "{name}".{hint} Known are: {", ".join(EXPORTS)}.')
        require(name)
        if rep is not None and not can_hold(name, rep):
            raise ValueError(refusal(name, rep, [known for known in EXPORTS if can_hold(known, rep)]))


def require(name: str) -> None:
    """Raise ValueError where a library of a format is not installed."""
    entry = EXPORTS[name]
    if isinstance(entry, Asset) and any(importlib.util.find_spec(module) is None for module in entry.needs):
        raise ValueError(
            f'The format {name} takes a library that is not installed: pip install "sds3d[{entry.extra}]".'
        )


def refusal(name: str, rep: Representation, able: Sequence[str]) -> str:
    """Why a format is not written, and which are."""
    return f"The asset is {_words(type(rep))}, which {name} cannot hold; it can be written as {', '.join(able)}."


def can_hold(name: str, rep: Representation) -> bool:
    """Whether a format can hold a representation."""
    entry = EXPORTS[name]
    return isinstance(entry, Film) or isinstance(rep, entry.holds)


def _words(kind: type[Representation]) -> str:
    if issubclass(kind, TexturedMesh):
        return "a textured mesh"
    if issubclass(kind, Mesh):
        return "a mesh"
    if issubclass(kind, Gaussians):
        return "a set of Gaussians"
    return "a radiance field" if issubclass(kind, Field | HashField) else f"a {kind.__name__}"


def export(
    name: str,
    rep: Representation,
    folder: Path,
    renderer: Renderer,
    provenance: Mapping[str, str] | None = None,
    cameras: Cameras | None = None,
    placement: Placement = NOWHERE,
) -> Exported:
    """Write one format into a folder.

    provenance: words about the making (prompt, seed, version) for formats that can carry them. cameras: in which the
    file is compared with the asset; four around the object where none are given. placement: size and origin of the
    asset in its file. Raises ValueError for an unknown format and for one that cannot hold the representation,
    ArithmeticError for a file that would not show the asset, OSError when it cannot be written.
    """
    check_names([name], rep)
    entry, folder, told = EXPORTS[name], Path(folder), provenance or {}
    if isinstance(entry, Film):
        from .video import write_film

        return Exported(write_film(rep, folder / entry.file, renderer, told, entry.look))
    module, turn = _module(entry), placement.of(rep)
    files: Files
    if name == "glb" and isinstance(rep, TemplateMesh):
        from .glb_morph import rigged

        files = rigged(rep, turn, renderer, told, entry.file)
    else:
        files = module.encode(turn(rep), renderer, told, entry.file)
    again = turn.inverse(module.decode(files))
    views = turntable(CHECK_VIEWS, CHECK_SIZE) if cameras is None else cameras
    device = next(rep.parameters()).device
    true, got = (draw(one.to(device), renderer, views) for one in (_shown(entry, rep), again))
    quality = psnr(true, got, entry.look)
    if not quality >= entry.psnr_db:
        raise ArithmeticError(
            f"{folder / entry.file} was not written: read back, its pictures are at {quality:.1f} dB of the asset's, "
            f"and {name} must reach {entry.psnr_db:g} dB."
        )
    for file in reversed(list(files)):  # The file to open comes last, so that it never lacks what it points to.
        write(folder / file, files[file])
    return Exported(folder / entry.file, quality)


def _shown(entry: Asset, rep: Representation) -> Representation:
    """What of the representation a file can show: where there is no colour, there is no normal map either."""
    return Mesh(rep.vertices, rep.faces) if entry.look == "normal" and isinstance(rep, TexturedMesh) else rep


def read(path: Path) -> Representation:
    """The asset of a file that `export` can check, by its suffix. Raises ValueError, FileNotFoundError."""
    for name, entry in sorted(EXPORTS.items(), key=lambda known: -len(_suffix(known[1].file))):
        if isinstance(entry, Asset) and path.name.endswith(_suffix(entry.file)):
            require(name)
            module = _module(entry)
            others = module.beside(path) if hasattr(module, "beside") else {}
            return module.decode({str(path): path.read_bytes(), **others})
    known = dict.fromkeys(_suffix(entry.file) for entry in EXPORTS.values() if isinstance(entry, Asset))
    raise ValueError(f"{path} has none of the suffixes that are read: {', '.join(known)}.")


def _suffix(file: str) -> str:
    return file[file.index(".") :]


def _module(entry: Asset) -> ModuleType:
    return importlib.import_module(f".{entry.module}", __package__)
