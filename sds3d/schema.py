"""The one schema: plain data to dataclasses by their declared types, and back.

Of each mistake it says where it is, what was given, what is allowed, and the nearest name. A field may carry metadata:
`key`, its word in a recipe where that is not its name; `inline`, it takes the keys that its owner does not have;
`unsaid`, it is written out only where it is not its default.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union

from . import plugins
from .schedules import Number, Ramp, Range

FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class RecipeError(ValueError):
    """A recipe that cannot be used: where, what was given, what is allowed."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)


def to_data(value: object, extra: Mapping[str, type] | None = None) -> Any:
    """Plain data that `build` turns into an equal object again: every field is written out, but for unsaid ones."""
    if isinstance(value, Range):
        return _range_data(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        data: dict[str, Any] = {}
        kind = _kind(type(value), extra or {})
        if kind is not None:
            data["kind"] = kind
        for field in dataclasses.fields(value):
            if field.metadata.get("unsaid") and getattr(value, field.name) == field.default:
                continue
            part = to_data(getattr(value, field.name), extra)
            data |= part if field.metadata.get("inline") else {field.metadata.get("key", field.name): part}
        return data
    if isinstance(value, Mapping):
        return {name: to_data(part, extra) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_data(part, extra) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"A recipe cannot hold a {type(value).__name__}.")


def _kind(cls: type, extra: Mapping[str, type]) -> str | None:
    for family in plugins.KINDS:
        kind = plugins.kind_of(family, cls, extra if family == "guidance" else None)
        if kind is not None:
            return kind
    declared = {family for base in cls.__mro__ if (family := plugins.family_of(base))}
    return plugins.place(cls) if declared else None


def _range_data(value: Range) -> Any:
    low, high = value.low, value.high
    if isinstance(low, Ramp) and isinstance(high, Ramp) and (low.over, low.curve) == (high.over, high.curve):
        both = {"from": [low.start, high.start], "to": [low.end, high.end]}
        return {**both, "over": list(low.over), "curve": low.curve}
    return [to_data(low), to_data(high)]


def convert(data: Any, declared: Any, path: str, extra: Mapping[str, type]) -> Any:
    """`data` as the declared type wants it."""
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin in (Union, types.UnionType):
        fitting = [member for member in arguments if _fits(data, member)]
        if not fitting:
            raise _wrong(path, declared, data)
        return convert(data, fitting[0], path, extra)
    if not _fits(data, declared):
        raise _wrong(path, declared, data)
    if origin is Literal:
        if data not in arguments:
            raise RecipeError(path, plugins.unknown("value", str(data), map(str, arguments)))
        return data
    if declared in (int, float):
        return number(data, declared, path)
    if declared is Range:
        return _range(data, path, extra)
    if origin in (tuple, list, Sequence):
        return _list(data, declared, path, extra)
    if origin is Mapping or origin is dict:
        return {name: convert(part, arguments[1], _join(path, name), extra) for name, part in data.items()}
    family = plugins.family_of(declared)
    if family is not None:
        return _one_of(data, family, path, extra)
    if isinstance(declared, type) and dataclasses.is_dataclass(declared):
        return _object(data, declared, path, extra)
    return data


def _fits(data: Any, declared: Any) -> bool:
    """Whether data has the form of a declared type: a mapping, a list, a number, a text."""
    origin = typing.get_origin(declared)
    if origin in (Union, types.UnionType):
        return any(_fits(data, member) for member in typing.get_args(declared))
    if declared is type(None):
        return data is None
    if declared is bool:
        return isinstance(data, bool)
    if declared in (int, float):
        number = isinstance(data, (int, float)) and not isinstance(data, bool)
        return number or (isinstance(data, str) and FLOAT.fullmatch(data) is not None)
    if declared is str or origin is Literal:
        return isinstance(data, str)
    if declared is Range:
        return isinstance(data, (list, dict))
    if origin in (tuple, list, Sequence):
        return isinstance(data, list)
    return isinstance(data, dict)


def number(data: int | float | str, declared: type, path: str) -> int | float:
    """A finite number of the declared type, int or float; 2e2 is a whole number too. Raises RecipeError."""
    written = not isinstance(data, str) or FLOAT.fullmatch(data) is not None
    exact = data if isinstance(data, int) else float(data) if written else math.nan
    if not math.isfinite(exact) or (declared is int and exact != int(exact)):
        raise RecipeError(path, f"must be {_say(declared)}, given {show(data)}.")
    return declared(exact)


def _list(data: list, declared: Any, path: str, extra: Mapping[str, type]) -> tuple | list:
    members = typing.get_args(declared)
    if typing.get_origin(declared) is tuple and members[-1] is not Ellipsis:
        if len(data) != len(members):
            raise RecipeError(path, f"must be {_say(declared)}, given {show(data)}.")
    else:
        members = (members[0],) * len(data)
    parts = [
        convert(part, member, f"{path}[{i}]", extra) for i, (part, member) in enumerate(zip(data, members, strict=True))
    ]
    return parts if typing.get_origin(declared) is list else tuple(parts)


def _range(data: Any, path: str, extra: Mapping[str, type]) -> Range:
    """[low, high], or both ends as one schedule {from: [low, high], to: [low, high]}."""
    if isinstance(data, list):
        low, high = _list(data, tuple[Number, Number], path, extra)
        return Range(low, high)
    ends = {
        name: convert(data[name], tuple[float, float], _join(path, name), extra)
        for name in data
        if name in ("from", "to")
    }
    low, high = ({**data, **{name: end[i] for name, end in ends.items()}} for i in (0, 1))
    return Range(_object(low, Ramp, path, extra), _object(high, Ramp, path, extra))


def _one_of(data: dict, family: str, path: str, extra: Mapping[str, type]) -> Any:
    kind = data.get("kind")
    if not isinstance(kind, str):
        raise RecipeError(path, f"needs kind: one of {', '.join(plugins.kinds(family))}.")
    try:
        cls = plugins.load(family, kind, extra)
    except ValueError as error:
        raise RecipeError(_join(path, "kind"), str(error)) from None
    return _object({key: part for key, part in data.items() if key != "kind"}, cls, path, extra)


def _object(data: dict, cls: type, path: str, extra: Mapping[str, type]) -> Any:
    """A dataclass from its fields; those that it does not have go to its inline field, where it has one."""
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    inline = [field for field in fields if field.metadata.get("inline")]
    known = {field.metadata.get("key", field.name): field for field in fields if field.init and field not in inline}
    others = {key: part for key, part in data.items() if key not in known}
    if others and not inline:
        key = next(iter(others))
        raise RecipeError(_join(path, key), plugins.unknown("key", key, known))
    given = {
        known[key].name: convert(part, hints[known[key].name], _join(path, key), extra)
        for key, part in data.items()
        if key in known
    }
    for field in inline:
        given[field.name] = convert(others, hints[field.name], path, extra)
    for key, field in known.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in given and not optional:
            raise RecipeError(_join(path, key), f"is missing; it must be {_say(hints[field.name])}.")
    try:
        return cls(**given)
    except (ValueError, TypeError) as error:
        raise RecipeError(path, str(error)) from None


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _wrong(path: str, declared: Any, data: Any) -> RecipeError:
    return RecipeError(path, f"must be {_say(declared)}, given {show(data)}.")


def show(data: Any) -> str:
    """What was given, short enough for a sentence."""
    if data is None:
        return "nothing"
    if isinstance(data, bool):
        return str(data).lower()
    text = f'"{data}"' if isinstance(data, str) else str(data)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _say(declared: Any) -> str:
    """A declared type in words."""
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_say(member) for member in arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (tuple, list, Sequence):
        fixed = origin is tuple and arguments[-1] is not Ellipsis
        return f"a list of {len(arguments)}" if fixed else "a list"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    words |= {Ramp: "a schedule {from:, to:}", Range: "a range [low, high], or {from: [low, high], to: [low, high]}"}
    family = plugins.family_of(declared)
    return words.get(declared) or (
        f"a mapping with kind: {', '.join(plugins.kinds(family))}" if family else "a mapping"
    )
