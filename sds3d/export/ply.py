"""Gaussians as the binary .ply of 3D Gaussian Splatting (Kerbl et al. 2023), as viewers read it.

| property           | variable       | value                                                        |
|--------------------|----------------|--------------------------------------------------------------|
| x y z              | means          | in the file's frame, (x, y, z) -> (-y, -z, x)                |
| nx ny nz           |                | 0                                                            |
| f_dc_0..2          | rgb            | (rgb - 0.5) / C0, the constant term of spherical harmonics   |
| opacity            | opacity_logits | logit                                                        |
| scale_0..2         | log_scales     | natural logarithm                                            |
| rot_0..3           | quats          | wxyz, unit                                                   |

All are little-endian float32 in this order. The file's frame is y-down: viewers turn it by 180 degrees about z to get
a y-up world with the front to +z. So our front (+x) goes to +z, our up (+z) to -y, our left (+y) to -x.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Renderer, Representation
from ..representations.gaussians import Gaussians
from .provenance import plain
from .rounding import float32
from .splats import C0, Y_DOWN, Columns, to_columns, to_gaussians

NAMES = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
NEEDED = tuple(name for name in NAMES if not name.startswith("n"))
HEADER_LIMIT = 1 << 16  # bytes; a header of this kind takes about one thousand
SIZES = {"char": 1, "uchar": 1, "int8": 1, "uint8": 1, "short": 2, "ushort": 2, "int16": 2, "uint16": 2}
SIZES |= {"int": 4, "uint": 4, "int32": 4, "uint32": 4, "float": 4, "float32": 4, "double": 8, "float64": 8}


def encode(rep: Representation, renderer: Renderer, provenance: Mapping[str, str], name: str) -> dict[str, bytes]:
    """One file, with provenance in its comments. Raises TypeError for another representation than Gaussians."""
    columns = to_columns(rep, Y_DOWN, name)
    table = torch.cat(
        [
            columns.means,
            torch.zeros_like(columns.means),
            (columns.rgb - 0.5) / C0,
            columns.opacity_logits[:, None],
            columns.log_scales,
            columns.quats,
        ],
        dim=1,
    )
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {plain(word)} {plain(said)}" for word, said in provenance.items()]
    lines += [f"element vertex {len(table)}", *(f"property float {column}" for column in NAMES), "end_header", ""]
    return {name: "\n".join(lines).encode("ascii") + float32(table).tobytes()}


def read_ply(path: str | Path) -> Gaussians:
    """The Gaussians of a 3DGS .ply file; see `decode`. Raises FileNotFoundError, ValueError."""
    return decode({str(path): Path(path).read_bytes()})


def decode(files: Mapping[str, bytes]) -> Gaussians:
    """The Gaussians, turned into our frame.

    Colours are those of the constant term alone; view-dependent terms (f_rest_*) are left out. Colours that no sRGB
    value has are brought to the nearest that a logit can hold. Raises ValueError for a file that is no binary
    little-endian .ply of splats, is cut short, or holds numbers that are not finite.
    """
    name, data = next(iter(files.items()))
    table = read_table(data, name)

    def stack(*columns: str) -> Float[Tensor, "M k"]:
        return torch.from_numpy(np.stack([table[column] for column in columns], axis=1).astype(np.float64))

    read = Columns(
        means=stack("x", "y", "z"),
        log_scales=stack("scale_0", "scale_1", "scale_2"),
        quats=stack("rot_0", "rot_1", "rot_2", "rot_3"),
        opacity_logits=stack("opacity")[:, 0],
        rgb=0.5 + C0 * stack("f_dc_0", "f_dc_1", "f_dc_2"),
    )
    return to_gaussians(read, Y_DOWN, name)


def read_table(data: bytes, name: str) -> np.ndarray:
    """The vertices, with `NEEDED` as the names of columns. The declared length must be the file's."""
    start = data[:HEADER_LIMIT]
    header, mark, _ = start.partition(b"end_header\n")
    if not mark or not start.startswith(b"ply\n"):
        raise ValueError(f"{name} is not a .ply file (no header).")
    lines = [line.split() for line in header.decode("ascii", errors="replace").splitlines()]
    if ["format", "binary_little_endian", "1.0"] not in lines:
        raise ValueError(f"{name} is not a binary little-endian .ply, as splats are stored.")
    elements = [line for line in lines if line[:1] == ["element"]]
    if len(elements) != 1 or not re.fullmatch(r"element vertex [0-9]{1,12}", " ".join(elements[0])):
        raise ValueError(f"{name} must hold one element, the vertices of splats.")
    fields = []
    for line in lines:
        if line[:1] == ["property"]:
            if len(line) != 3 or line[1] not in SIZES:
                raise ValueError(f"{name} has a property that splats do not have: {' '.join(line[1:])}.")
            fields.append((line[2], line[1]))
    kinds = dict(fields)
    missing = [column for column in NEEDED if kinds.get(column) not in ("float", "float32")]
    if missing or len(kinds) != len(fields):
        raise ValueError(
            f"{name} is not a .ply of splats: no float property {missing[0]}."
            if missing
            else f"{name} names a property twice."
        )
    count, row = int(elements[0][2]), sum(SIZES[kind] for _, kind in fields)
    body = memoryview(data)[len(header) + len(mark) :]
    if len(body) != count * row or count == 0:
        raise ValueError(f"{name} is empty, cut short or too long for {count} splats of {row} bytes.")
    starts = dict(zip(kinds, np.cumsum([0, *(SIZES[kind] for _, kind in fields)]).tolist(), strict=False))
    offsets = [starts[column] for column in NEEDED]
    formats = ["<f4"] * len(NEEDED)
    layout = np.dtype({"names": list(NEEDED), "formats": formats, "offsets": offsets, "itemsize": row})
    return np.frombuffer(body, layout)
