"""The one table from a recipe's `kind:` to its class, imported when used.

Code comes from this table, from installed packages that name a guidance in the entry point group `sds3d.guidance`, or
from a file that the user types after `--guidance`. A recipe or a run folder can name none of it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

KINDS: dict[str, dict[str, str]] = {
    "guidance": {
        "sds": "sds3d.guidance.sds:Sds",
        "dds": "sds3d.guidance.dds:Dds",
        "iesd": "sds3d.guidance.iesd:Iesd",
        "ip2p": "sds3d.guidance.ip2p:Ip2p",
        "pds": "sds3d.guidance.pds:Pds",
        "pull": "sds3d.guidance.pull:Pull",
        "vsd": "sds3d.guidance.vsd:Vsd",
        "esd": "sds3d.guidance.esd:Esd",
        "pgsb": "sds3d.guidance.pgsb:Pgsb",
        "dmd": "sds3d.guidance.dmd:Dmd",
        "f_distill": "sds3d.guidance.f_distill:FDistill",
        "disback": "sds3d.guidance.disback:Disback",
        "csd": "sds3d.guidance.csd:Csd",
        "csm": "sds3d.guidance.csm:Csm",
        "ism": "sds3d.guidance.ism:Ism",
        "nfsd": "sds3d.guidance.nfsd:Nfsd",
        "asd": "sds3d.guidance.asd:Asd",
        "bsd": "sds3d.guidance.bsd:Bsd",
        "bsd_auto": "sds3d.guidance.bsd:BsdAuto",
        "sdi": "sds3d.guidance.sdi:Sdi",
        "cds": "sds3d.guidance.cds:Cds",
        "rfds": "sds3d.guidance.rfds:Rfds",
        "rfds_rev": "sds3d.guidance.rfds:RfdsRev",
        "clip": "sds3d.guidance.wrap:Clip",
        "normalise": "sds3d.guidance.wrap:Normalise",
        "average": "sds3d.guidance.wrap:Average",
        "nasa": "sds3d.guidance.wrap:Nasa",
        "blend": "sds3d.guidance.wrap:Blend",
        "local": "sds3d.guidance.local:Local",
    },
    "mix": {
        "cfg": "sds3d.guidance.mix:Cfg",
        "instruct": "sds3d.guidance.mix:Instruct",
        "alone": "sds3d.guidance.mix:Alone",
        "repel": "sds3d.guidance.mix:Repel",
        "perp_neg": "sds3d.guidance.mix:PerpNeg",
        "rescale": "sds3d.guidance.mix:Rescale",
    },
    "start": {
        "blob": "sds3d.representations.start:Blob",
        "continue": "sds3d.representations.start:Continue",
        "level": "sds3d.meshing:Level",
        "meshed": "sds3d.meshing:Meshed",
        "textured": "sds3d.meshing:Textured",
        "unwrapped": "sds3d.meshing:Unwrapped",
        "file": "sds3d.opening:File",
        "head": "sds3d.heads:Head",
        "chosen_head": "sds3d.representations.template_mesh:ChosenHead",
        "sphere": "sds3d.representations.mesh:Sphere",
        "shell": "sds3d.representations.isosurface:Shell",
        "ball": "sds3d.representations.field:Ball",
        "hash_ball": "sds3d.representations.hash_field:HashBall",
    },
    "optimise": {
        "gaussians": "sds3d.representations.gaussians:GaussianOptimise",
        "mesh": "sds3d.representations.mesh:MeshOptimise",
        "isosurface": "sds3d.representations.isosurface:IsosurfaceOptimise",
        "texture": "sds3d.representations.texture:TextureOptimise",
        "field": "sds3d.representations.field:FieldOptimise",
        "hash": "sds3d.representations.hash_field:HashOptimise",
    },
    "renderer": {
        "splats": "sds3d.renderers.splats:Splats",
        "raster": "sds3d.renderers.raster:Raster",
        "volume": "sds3d.renderers.volume:Volume",
    },
    "region": {
        "ball": "sds3d.regions:Ball",
        "box": "sds3d.regions:Box",
        "voxels": "sds3d.regions:Voxels",
        "texels": "sds3d.regions:Texels",
    },
    "light": {"lambert": "sds3d.renderers.shading:Lambert", "pbr": "sds3d.renderers.shading:Pbr"},
    "cameras": {"orbit": "sds3d.cameras:Orbit"},
    "control": {"landmarks": "sds3d.controls:Landmarks"},
    "background": {
        "named": "sds3d.renderers.background:Named",
        "plain": "sds3d.renderers.background:Plain",
        "random": "sds3d.renderers.background:Random",
    },
}

# The declared types that stand for "one of a family": a field of such a type is written with `kind:`.
FAMILIES: dict[str, str] = {
    "sds3d.core:Guidance": "guidance",
    "sds3d.core:Mix": "mix",
    "sds3d.core:Renderer": "renderer",
    "sds3d.renderers.shading:Light": "light",
    "sds3d.regions:Region": "region",
    "sds3d.terms:ControlSource": "control",
    "sds3d.engine:Start": "start",
    "sds3d.engine:Optimise": "optimise",
    "sds3d.engine:CameraSampler": "cameras",
    "sds3d.engine:BackgroundSampler": "background",
}

GROUP = "sds3d.guidance"

BENCHES = {
    "prior": "sds3d.playroom.bench:prior",
    "playroom": "sds3d.playroom.bench:playroom",
    "guidance": "sds3d.playroom.bench_guidance:guidance",
}


def place(thing: type) -> str:
    """Where a class is found: "module:Name"."""
    return f"{thing.__module__}:{thing.__qualname__}"


def family_of(declared: object) -> str | None:
    """The family that a declared type stands for, or None."""
    return FAMILIES.get(place(declared)) if isinstance(declared, type) else None


@cache
def _installed() -> tuple[EntryPoint, ...]:
    """The guidances that installed packages name; reading this list imports none of them."""
    return tuple(entry_points(group=GROUP))


def kinds(family: str) -> dict[str, str]:
    """Every kind of a family and its place, installed plug-ins included; nothing is imported.

    Raises ValueError where an installed guidance takes the name of a built-in one or of another.
    """
    found = dict(KINDS[family])
    if family == "guidance":
        for entry in _installed():
            if found.get(entry.name, entry.value) != entry.value:
                raise ValueError(f'Two guidances are called "{entry.name}": {found[entry.name]} and {entry.value}.')
            found[entry.name] = entry.value
    return found


def fetch(where: str) -> Any:
    """What lies at "module:name", imported now."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def load(family: str, kind: str, extra: Mapping[str, type] | None = None) -> type:
    """The class of a kind. extra: kinds that the user named by file. Raises ValueError for an unknown kind."""
    if extra and kind in extra:
        return extra[kind]
    table = kinds(family)
    if kind not in table:
        if family == "guidance" and ":" in kind:
            raise ValueError(f"The guidance {kind} comes from a file; name that file again with --guidance {kind}.")
        raise ValueError(unknown(family, kind, table))
    cls = fetch(table[kind])
    if table[kind] != KINDS[family].get(kind):
        _check_foreign(cls, table[kind])
    return cls


def _check_foreign(cls: type, where: str) -> None:
    """Raise ValueError for a guidance that a recipe could not write: the words of a term stand beside its fields."""
    from .terms import Guide

    kept = {field.name for field in fields(Guide)} - {"guidance"}
    taken = sorted(kept & {field.name for field in fields(cls)}) if is_dataclass(cls) else []
    if taken:
        raise ValueError(
            f'The guidance {where} has a field "{taken[0]}", a word that a recipe keeps; rename the field.'
        )


def kind_of(family: str, cls: type, extra: Mapping[str, type] | None = None) -> str | None:
    """The kind under which a family's table knows a class, or None."""
    named = [kind for kind, known in (extra or {}).items() if known is cls]
    return next(iter(named + [kind for kind, known in kinds(family).items() if known == place(cls)]), None)


def load_file(spec: str) -> tuple[str, type]:
    """The guidance class of "path/to/file.py:Class", which runs the file. Returns its kind and the class.

    Raises ValueError for a file or class that is not there or is no guidance, and for a file that fails.
    """
    from .core import Guidance

    name, _, wanted = spec.rpartition(":")
    path = Path(name)
    if path.suffix != ".py" or not wanted.isidentifier():
        raise ValueError(f'A guidance from a file is written "file.py:Class", given "{spec}".')
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    module_spec = importlib.util.spec_from_file_location(f"sds3d_file_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None  # A path that ends in .py has a loader.
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    cls = getattr(module, wanted, None)
    if not isinstance(cls, type) or not issubclass(cls, Guidance) or inspect.isabstract(cls):
        raise ValueError(f"{path} has no guidance class {wanted}; a guidance derives from sds3d.core.Guidance.")
    _check_foreign(cls, spec)
    return spec, cls


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """A sentence for a name that does not exist, with the nearest one and all that do."""
    known = list(known)
    near = difflib.get_close_matches(given, known, n=1)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f'There is no {what} "{given}".{hint} Known are: {", ".join(known) or "none"}.'
