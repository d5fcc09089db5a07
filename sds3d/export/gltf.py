"""Binary glTF 2.0: one JSON chunk that describes, one binary chunk that it describes.

The frame is y-up with the front to +z, in metres: our (x, y, z) lies at (y, z, x).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

HEADER, CHUNK = struct.Struct("<4sII"), struct.Struct("<I4s")
VERTICES, INDICES = 34962, 34963  # what a buffer view is for
POINTS, TRIANGLES = 0, 4  # modes of a primitive
COMPONENTS = {np.dtype("u1"): 5121, np.dtype("<u2"): 5123, np.dtype("<u4"): 5125, np.dtype("<f4"): 5126}
DTYPES = {number: dtype for dtype, number in COMPONENTS.items()}
SHAPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}


class Buffer:
    """The binary chunk while it grows, with the accessors and buffer views that say what lies where."""

    def __init__(self) -> None:
        self.accessors: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self.parts: list[bytes] = []
        self.size = 0

    def view(self, data: bytes, **about: Any) -> int:
        """Add bytes, aligned to four; returns the number of their view."""
        self.views.append({"buffer": 0, "byteOffset": self.size, "byteLength": len(data), **about})
        self.parts.append(data + bytes(-len(data) % 4))
        self.size += len(self.parts[-1])
        return len(self.views) - 1

    def column(self, table: np.ndarray, target: int | None = VERTICES, **about: Any) -> int:
        """Add a table [count, width] of one of the component types; returns the number of its accessor.

        target: what a mesh uses it for; None for what no mesh uses.
        """
        use = {} if target is None else {"target": target}
        return self._add(table, about | {"bufferView": self.view(table.tobytes(), **use)})

    def sparse(self, table: np.ndarray, **about: Any) -> int:
        """Add a table in float32 of which only the rows that are not 0 are written."""
        rows = np.flatnonzero(table.any(axis=1)).astype("<u4")
        if len(rows) == 0:
            return self._add(table, about)  # An accessor without bytes is 0.
        indices = {"bufferView": self.view(rows.tobytes()), "componentType": COMPONENTS[rows.dtype]}
        values = {"bufferView": self.view(table[rows].tobytes())}
        return self._add(table, about | {"sparse": {"count": len(rows), "indices": indices, "values": values}})

    def _add(self, table: np.ndarray, about: dict[str, Any]) -> int:
        shape, kind = SHAPES[table.shape[1]], COMPONENTS[table.dtype]
        self.accessors.append({"componentType": kind, "count": len(table), "type": shape, **about})
        return len(self.accessors) - 1

    def positions(self, table: np.ndarray) -> int:
        """Positions [count, 3] in float32, with the bounds that glTF asks for."""
        return self.column(table, min=table.min(axis=0).tolist(), max=table.max(axis=0).tolist())


def to_glb(document: Mapping[str, Any], buffer: Buffer, provenance: Mapping[str, str]) -> bytes:
    """The whole file of a document with one mesh in one scene; provenance goes into the scene's extras."""
    whole = {
        "asset": {"version": "2.0", "generator": provenance.get("generator", "sds3d")},
        "scene": 0,
        "scenes": [{"nodes": [0], **({"extras": dict(provenance)} if provenance else {})}],
        "nodes": [{"mesh": 0}],
        **document,
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": buffer.size}],
    }
    text = json.dumps(whole, separators=(",", ":"), allow_nan=False).encode("ascii")
    text += b" " * (-len(text) % 4)
    size = HEADER.size + 2 * CHUNK.size + len(text) + buffer.size
    start = HEADER.pack(b"glTF", 2, size) + CHUNK.pack(len(text), b"JSON") + text
    return b"".join([start, CHUNK.pack(buffer.size, b"BIN\0"), *buffer.parts])


@dataclass(frozen=True)
class Glb:
    """A file that was read."""

    name: str
    document: dict[str, Any]
    body: memoryview

    @property
    def primitive(self) -> dict[str, Any]:
        """The first primitive of the first mesh. Raises ValueError."""
        return self.part("meshes", 0, "primitives", 0)

    def part(self, *path: Any) -> dict[str, Any]:
        """The object at a path of keys and numbers in the document. Raises ValueError where there is none."""
        here: Any = self.document
        for key in path:
            if isinstance(here, list):
                here = here[self.whole(key)] if self.whole(key) < len(here) else None
            else:
                here = here.get(key) if isinstance(here, dict) else None
            if here is None:
                raise self.wrong(f"its document lacks {key!r:.40}")
        if not isinstance(here, dict):
            raise self.wrong(f"{path[-1]!r:.40} in its document is not what it should be")
        return here

    def whole(self, value: Any) -> int:
        """A number that counts or points. Raises ValueError."""
        if not isinstance(value, int) or value < 0:
            raise self.wrong(f"{value!r:.40} stands where a whole number belongs")
        return value

    def column(self, accessor: Any, width: int) -> np.ndarray:
        """The table [count, width] of an accessor, without strides. Raises ValueError."""
        found = self.part("accessors", accessor)
        if "sparse" in found or "bufferView" not in found:
            raise self.wrong("its columns are not packed as this reader needs them")
        return self._rows(found, width, found.get("count"), found.get("type"))

    def sparse(self, accessor: Any, width: int) -> np.ndarray:
        """The table of an accessor that may tell only the rows that are not 0. Raises ValueError."""
        found = self.part("accessors", accessor)
        if "bufferView" in found:
            return self.column(accessor, width)
        table = np.zeros((self.whole(found.get("count")), width), dtype="<f4")
        if "sparse" not in found:
            return table
        told = self.part("accessors", accessor, "sparse")
        indices, values = (self.part("accessors", accessor, "sparse", key) for key in ("indices", "values"))
        rows = self._rows(indices, 1, told.get("count"), SHAPES[1])[:, 0].astype(np.int64)
        if rows.max() >= len(table):
            raise self.wrong(f"a row of a sparse column is {rows.max()}, and it has {len(table)}")
        kind = found.get("componentType")
        table[rows] = self._rows({"componentType": kind, **values}, width, told.get("count"), found.get("type"))
        return table

    def _rows(self, where: Mapping[str, Any], width: int, rows: Any, shape: Any) -> np.ndarray:
        """Packed rows of a component type in a buffer view. Raises ValueError."""
        view = self.part("bufferViews", where.get("bufferView"))
        kind = where.get("componentType")
        if kind not in DTYPES or shape != SHAPES[width] or "byteStride" in view:
            raise self.wrong("its columns are not packed as this reader needs them")
        dtype, count = DTYPES[kind], self.whole(rows)
        start = self.whole(view.get("byteOffset", 0)) + self.whole(where.get("byteOffset", 0))
        if count < 1 or start + dtype.itemsize * width * count > len(self.body):
            raise self.wrong(f"a column of {count} rows reaches beyond its end")
        return np.frombuffer(self.body, dtype, count * width, start).reshape(count, width)

    def view(self, number: Any) -> bytes:
        """The bytes of a buffer view. Raises ValueError."""
        view = self.part("bufferViews", number)
        start, length = (self.whole(view.get(key, 0)) for key in ("byteOffset", "byteLength"))
        if start + length > len(self.body):
            raise self.wrong("a picture reaches beyond its end")
        return bytes(self.body[start : start + length])

    def wrong(self, why: str) -> ValueError:
        return ValueError(f"{self.name} is not a .glb that can be read: {why}.")


def read_glb(data: bytes, name: str) -> Glb:
    """A .glb with one JSON and one binary chunk. Raises ValueError for what is no such file or is cut short."""
    none = Glb(name, {}, memoryview(b""))
    if len(data) < HEADER.size + CHUNK.size or data[:4] != b"glTF":
        raise none.wrong("it has no header of binary glTF")
    _, version, size = HEADER.unpack_from(data)
    if version != 2 or size != len(data):
        raise none.wrong("it is of another version, cut short or too long")
    length, kind = CHUNK.unpack_from(data, HEADER.size)
    start = HEADER.size + CHUNK.size
    end = start + length
    if kind != b"JSON" or end + CHUNK.size > size:
        raise none.wrong("it does not begin with a whole document")
    try:
        document = json.loads(data[start:end].decode("utf-8"))
    except (ValueError, RecursionError):
        raise none.wrong("its document is damaged") from None
    length, kind = CHUNK.unpack_from(data, end)
    body = memoryview(data)[end + CHUNK.size :]
    if kind != b"BIN\0" or length != len(body) or not isinstance(document, dict):
        raise none.wrong("it does not hold one document and one binary chunk")
    return Glb(name, document, body)
