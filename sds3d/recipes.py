"""Recipes: strict YAML to plain data to a `Recipe`.

A recipe is data. The reader takes the core of YAML 1.2 (so `on` is text, `1e-3` is a number) and refuses tags, aliases,
double keys, deep nesting and large files; `schema` then converts by declared types.

A recipe that begins with the user's own file may hold a block `splat:`, of what is another way where the file holds
Gaussians in place of a mesh.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from . import plugins
from .schema import FLOAT, RecipeError, convert, show

if TYPE_CHECKING:
    from .engine import Recipe

LARGEST, DEEPEST, MOST = 200_000, 20, 20_000  # bytes of a file, nesting, parts


class _Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2: true and false, null, whole numbers and numbers; everything else is text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(_place(key.start_mark), "a key must be a plain word.")
            if key.value in seen:
                raise RecipeError(_place(key.start_mark), f'the key "{key.value}" is given twice.')
            seen.add(key.value)
        return {str(key.value): self.construct_object(value, deep=deep) for key, value in node.value}


_Loader.yaml_implicit_resolvers = {}  # PyYAML's own are those of YAML 1.1.
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^{FLOAT.pattern}$"), list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


def _place(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def parse(text: str, source: str = "") -> Any:
    """The plain data of one YAML document. Raises RecipeError for what is not simple YAML."""
    if len(text) > LARGEST:
        raise RecipeError(source, f"has {len(text)} characters; at most {LARGEST} are read.")
    try:
        _check_events(text)
        return yaml.load(text, Loader=_Loader)
    except RecipeError as error:
        raise RecipeError(source, str(error)) from None
    except yaml.MarkedYAMLError as error:
        where = _place(error.problem_mark)
        raise RecipeError(source, f"{where}: this is not YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise RecipeError(source, f"this is not YAML: {' '.join(str(error).split())}.") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(source, f"this cannot be read: {error}.") from None


def _check_events(text: str) -> None:
    """Refuse, before anything is built, what can run code or grow beyond its size."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        where = _place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            raise RecipeError(where, "aliases (*name) are not allowed in a recipe.")
        if getattr(event, "tag", None) is not None:
            raise RecipeError(where, f"tags are not allowed in a recipe, given {event.tag}.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST or count > MOST:
            raise RecipeError(where, f"at most {DEEPEST} levels and {MOST} parts are read.")


def names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("sds3d.configs")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read(recipe: str, splat: bool = False) -> dict[str, Any]:
    """The plain data of a recipe, by name or by the path of a YAML file. Raises RecipeError.

    splat: as it is for a file of Gaussians.
    """
    if recipe in names():
        source, data = recipe, resources.files("sds3d.configs").joinpath(f"{recipe}.yaml").read_bytes()
    elif "://" in recipe:
        raise RecipeError(recipe, "a recipe is a name or a file, not a URL.")
    elif recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        source, path = recipe, Path(recipe)
        if not path.is_file():
            raise RecipeError(source, "there is no such recipe file.")
        if path.stat().st_size > LARGEST:
            raise RecipeError(source, f"has {path.stat().st_size} bytes; at most {LARGEST} are read.")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RecipeError(source, f"cannot be read: {error.strerror}.") from None
    else:
        raise RecipeError("", plugins.unknown("recipe", recipe, names()))
    try:
        plain = parse(data.decode("utf-8-sig"), source)
    except UnicodeDecodeError:
        raise RecipeError(source, "a recipe must be UTF-8 text.") from None
    if not isinstance(plain, dict):
        raise RecipeError(source, f"a recipe is a mapping with the key stages, given {show(plain)}.")
    other = plain.pop("splat", {})
    if not isinstance(other, dict):
        raise RecipeError(f"{source}: splat", f"is a mapping of a recipe's keys, given {show(other)}.")
    return {**plain, **other} if splat else plain


def override(data: dict[str, Any], assignment: str) -> None:
    """Set one value of a recipe's data in place, "stages.shape.steps=200". Raises RecipeError for a path not there."""
    path, equals, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError("--set", f'is written path.to.key=value, given "{assignment}".')
    here: Any = data
    for depth, key in enumerate(keys[:-1]):
        if not isinstance(here, dict) or not isinstance(here.get(key), dict):
            known = list(here) if isinstance(here, dict) else []
            place = ".".join(keys[:depth]) or "the recipe"
            raise RecipeError("--set", f"in {place}: {plugins.unknown('block', key, known)}")
        here = here[key]
    here[keys[-1]] = parse(text, f"--set {path}")


def build(data: dict[str, Any], extra: Mapping[str, type] | None = None) -> Recipe:
    """The recipe of plain data. extra: guidances that the user named by file. Raises RecipeError."""
    from .engine import Recipe

    return convert(data, Recipe, "", extra or {})
