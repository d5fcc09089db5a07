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

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Renderer, Representation
from ..files import replacing
from ..representations.gaussians import Gaussians

C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
NAMES = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
NEEDED = tuple(name for name in NAMES if not name.startswith("n"))
TURN = ((0.0, -1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0))  # from our frame to the file's
TURN_WXYZ = (0.5, 0.5, -0.5, 0.5)  # the same rotation
HEADER_LIMIT = 1 << 16  # bytes; a header of this kind takes about one thousand
SIZES = {"char": 1, "uchar": 1, "int8": 1, "uint8": 1, "short": 2, "ushort": 2, "int16": 2, "uint16": 2}
SIZES |= {"int": 4, "uint": 4, "int32": 4, "uint32": 4, "float": 4, "float32": 4, "double": 8, "float64": 8}


def write(rep: Representation, path: Path, renderer: Renderer, provenance: Mapping[str, str]) -> Path:
    """Write Gaussians; provenance goes into comments. Raises TypeError for another representation."""
    if not isinstance(rep, Gaussians):
        raise TypeError(f"The ply of splats holds Gaussians, not {type(rep).__name__}.")
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(rep, provenance))
    return path


@torch.no_grad()
def to_bytes(rep: Gaussians, provenance: Mapping[str, str] | None = None) -> bytes:
    """The whole file."""
    columns = {name: tensor.detach().double().cpu() for name, tensor in rep.named_parameters()}
    means, quats = columns["means"], torch.nn.functional.normalize(columns["quats"], dim=-1)
    turn = means.new_tensor(TURN)
    table = torch.cat(
        [
            means @ turn.T,
            torch.zeros_like(means),
            (columns["colour_logits"].sigmoid() - 0.5) / C0,
            columns["opacity_logits"][:, None],
            columns["log_scales"],
            multiply(quats.new_tensor(TURN_WXYZ), quats),
        ],
        dim=1,
    )
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {plain(word)} {plain(said)}" for word, said in (provenance or {}).items()]
    lines += [f"element vertex {len(table)}", *(f"property float {name}" for name in NAMES), "end_header", ""]
    return "\n".join(lines).encode("ascii") + (table.numpy() + 0.0).astype("<f4").tobytes()


def plain(text: str) -> str:
    """One line of printable ASCII, everything else escaped, so that no prompt can end a header."""
    return str(text).encode("unicode_escape").decode("ascii")


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """The Hamilton product of quaternions [..., 4], wxyz."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )


def read_ply(path: str | Path) -> Gaussians:
    """The Gaussians of a 3DGS .ply, turned into our frame.

    Colours are those of the constant term alone; view-dependent terms (f_rest_*) are left out. Colours that no sRGB
    value has are brought to the nearest that a logit can hold. Raises FileNotFoundError, and ValueError for a file
    that is no binary little-endian .ply of splats, is cut short, or holds numbers that are not finite.
    """
    path = Path(path)
    with path.open("rb") as stream:
        columns = read_table(stream, path)
    wrong = [name for name in NEEDED if not np.isfinite(columns[name]).all()]
    if wrong:
        raise ValueError(f"{path} holds numbers that are not finite, in {wrong[0]}.")

    def stack(*names: str) -> Float[Tensor, "M k"]:
        return torch.from_numpy(np.stack([columns[name] for name in names], axis=1).astype(np.float64))

    quats = stack("rot_0", "rot_1", "rot_2", "rot_3")
    if (quats.norm(dim=1) < 1e-6).any():
        raise ValueError(f"{path} holds a rotation of length 0.")
    back = quats.new_tensor(TURN_WXYZ) * quats.new_tensor([1, -1, -1, -1])
    rgb = (0.5 + C0 * stack("f_dc_0", "f_dc_1", "f_dc_2")).clamp(1e-6, 1 - 1e-6)
    tensors = (
        stack("x", "y", "z") @ quats.new_tensor(TURN),
        stack("scale_0", "scale_1", "scale_2"),
        torch.nn.functional.normalize(multiply(back, quats), dim=-1),
        stack("opacity")[:, 0],
        rgb.logit(),
    )
    return Gaussians(*(tensor.float() for tensor in tensors))


def read_table(stream, path: Path) -> dict[str, np.ndarray]:
    """The columns of the vertices, by name. The declared length is compared with the file before any is read."""
    start = stream.read(HEADER_LIMIT)
    header, mark, _ = start.partition(b"end_header\n")
    if not mark or not start.startswith(b"ply\n"):
        raise ValueError(f"{path} is not a .ply file (no header).")
    lines = [line.split() for line in header.decode("ascii", errors="replace").splitlines()]
    if ["format", "binary_little_endian", "1.0"] not in lines:
        raise ValueError(f"{path} is not a binary little-endian .ply, as splats are stored.")
    elements = [line for line in lines if line[:1] == ["element"]]
    if len(elements) != 1 or elements[0][1:2] != ["vertex"] or len(elements[0]) != 3 or not elements[0][2].isdigit():
        raise ValueError(f"{path} must hold one element, the vertices of splats.")
    fields = []
    for line in lines:
        if line[:1] == ["property"]:
            if len(line) != 3 or line[1] not in SIZES:
                raise ValueError(f"{path} has a property that splats do not have: {' '.join(line[1:])}.")
            fields.append((line[2], line[1]))
    kinds = dict(fields)
    missing = [name for name in NEEDED if kinds.get(name) not in ("float", "float32")]
    if missing or len(kinds) != len(fields):
        raise ValueError(
            f"{path} is not a .ply of splats: no float property {missing[0]}."
            if missing
            else f"{path} names a property twice."
        )
    count, row = int(elements[0][2]), sum(SIZES[kind] for _, kind in fields)
    stream.seek(0, 2)
    if stream.tell() - len(header) - len(mark) != count * row or count == 0:
        raise ValueError(f"{path} is empty, cut short or too long for {count} splats of {row} bytes.")
    stream.seek(len(header) + len(mark))
    offsets = dict(zip(kinds, np.cumsum([0, *(SIZES[kind] for _, kind in fields)]).tolist(), strict=False))
    layout = np.dtype(
        {
            "names": list(NEEDED),
            "formats": ["<f4"] * len(NEEDED),
            "offsets": [offsets[n] for n in NEEDED],
            "itemsize": row,
        }
    )
    table = np.frombuffer(stream.read(count * row), layout)
    return {name: table[name] for name in NEEDED}
