"""Gaussians as .spz, version 3 (Niantic, MIT): 20 bytes a splat, gzipped; about a fifth of a .ply.

A header of 16 bytes (magic, version, count, degree of harmonics, fractional bits, flags, reserved) is followed by one
column after another:

| column     | bytes | value                                                                                        |
|------------|-------|----------------------------------------------------------------------------------------------|
| position   | 9     | three signed 24-bit integers, in units of 2^-fractional bits                                 |
| alpha      | 1     | opacity * 255                                                                                |
| colour     | 3     | (0.15 f_dc + 0.5) * 255, f_dc being the constant harmonic                                    |
| scale      | 3     | (natural logarithm + 10) * 16                                                                |
| rotation   | 4     | the three smaller of xyzw in sign and 9 bits, in units of sqrt(1/2) / 511, under the index   |
|            |       | of the largest in the two highest bits; version 2: xyz in three bytes, (value + 1) * 127.5   |

The frame is right, up, back: that of a .ply with y and z turned round. Version 4 has another container and few readers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
import torch

from ..core import Renderer, Representation
from ..representations.gaussians import Gaussians
from .provenance import one_line
from .rounding import bytes_of, logit
from .splats import C0, Y_DOWN, Columns, to_columns, to_gaussians

MAGIC, VERSION = 0x5053474E, 3
HEADER = struct.Struct("<IIIBBBB")
FRACTIONAL_BITS = 12
COLOUR = 0.15  # how much of the range of a byte one unit of f_dc takes
LIMIT = 10_000_000  # splats; the most that Niantic's own reader takes
FLIP = (1.0, -1.0, -1.0)  # from the frame of a .ply, and back
HARMONICS = (0, 9, 24, 45)  # bytes a splat, by degree
TURN_BYTES = {2: 3, 3: 4}  # of a rotation, by version


def encode(rep: Representation, renderer: Renderer, provenance: Mapping[str, str], name: str) -> dict[str, bytes]:
    """One file, with provenance in the comment of its gzip header.

    Raises TypeError for another representation than Gaussians, ValueError for a position that 24 bits cannot hold and
    for too many splats.
    """
    columns = to_columns(rep, Y_DOWN, name)
    flip = columns.means.new_tensor(FLIP)
    places = (columns.means * flip * 2**FRACTIONAL_BITS).round()
    count = len(places)
    if count > LIMIT or places.abs().max() >= 2**23:
        raise ValueError(f"An spz holds at most {LIMIT} splats within 2047 units of the origin; write a ply.")
    body = [
        places.to(torch.int32).numpy().astype("<i4").view(np.uint8).reshape(count, 3, 4)[..., :3],
        bytes_of(columns.opacity_logits.sigmoid() * 255).numpy(),
        bytes_of((COLOUR * (columns.rgb - 0.5) / C0 + 0.5) * 255).numpy(),
        bytes_of((columns.log_scales + 10) * 16).numpy(),
        pack(torch.cat([columns.quats[:, 1:] * flip, columns.quats[:, :1]], dim=1).numpy()),
    ]
    data = HEADER.pack(MAGIC, VERSION, count, 0, FRACTIONAL_BITS, 0, 0) + b"".join(part.tobytes() for part in body)
    return {name: gzip(data, one_line(provenance))}


def gzip(data: bytes, comment: str) -> bytes:
    """Gzip (RFC 1952) with a comment in ASCII and without a time, so that equal runs give equal bytes."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    header = b"\x1f\x8b\x08\x10\0\0\0\0\x02\xff" + comment.encode("ascii") + b"\0"
    end = struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
    return header + squeeze.compress(data) + squeeze.flush() + end


def pack(quats: np.ndarray) -> np.ndarray:
    """Unit quaternions xyzw [M, 4] as M little-endian words."""
    largest = np.abs(quats).argmax(axis=1)
    sign = np.sign(np.take_along_axis(quats, largest[:, None], axis=1))
    steps = np.round(quats * sign * (511 * np.sqrt(2))).clip(-511, 511).astype(np.int64)
    word = largest.astype(np.uint32)
    for axis in range(4):
        bits = np.abs(steps[:, axis]) | (steps[:, axis] < 0).astype(np.int64) << 9
        word = np.where(axis == largest, word, word << 10 | bits.astype(np.uint32))
    return word.astype("<u4")


def unpack(words: np.ndarray) -> np.ndarray:
    """The inverse of `pack`, in float64."""
    rest, largest = words.astype(np.int64) & (2**30 - 1), words.astype(np.int64) >> 30
    quats = np.zeros((len(words), 4))
    for axis in reversed(range(4)):
        small = axis != largest
        value = (rest & 511) * np.where(rest & 512, -1.0, 1.0) / (511 * np.sqrt(2))
        quats[:, axis] = np.where(small, value, 0.0)
        rest = np.where(small, rest >> 10, rest)
    quats[np.arange(len(words)), largest] = np.sqrt(np.maximum(0.0, 1 - np.square(quats).sum(axis=1)))
    return quats


def decode(files: Mapping[str, bytes]) -> Gaussians:
    """The Gaussians of version 2 or 3, turned into our frame; harmonics above the constant are left out.

    Raises ValueError for what is no such file, is cut short, or is longer than it says.
    """
    name, packed = next(iter(files.items()))
    version, count, fractional_bits, data = unzip(packed, name)
    turn_bytes = TURN_BYTES[version]
    table = np.frombuffer(data, np.uint8)
    at = iter(np.split(table, np.cumsum([9 * count, count, 3 * count, 3 * count, turn_bytes * count])))
    wide = np.zeros((count, 3, 4), np.uint8)
    wide[..., 1:] = next(at).reshape(count, 3, 3)
    # The 24 bits lie in the upper bytes of 32, so that a shift brings the sign along.
    places = (wide.view("<i4")[..., 0] >> 8) / 2.0**fractional_bits
    alpha, colour, scales = (torch.from_numpy(next(at).reshape(count, -1) / 255.0) for _ in range(3))
    turns = next(at)
    if version == 3:
        quats = unpack(turns.view("<u4"))
    else:
        xyz = turns.reshape(count, 3) / 127.5 - 1
        quats = np.concatenate([xyz, np.sqrt(np.maximum(0, 1 - np.square(xyz).sum(1, keepdims=True)))], axis=1)
    flip, xyzw = torch.tensor(FLIP, dtype=torch.float64), torch.from_numpy(quats)
    columns = Columns(
        means=torch.from_numpy(places) * flip,
        log_scales=scales * 255 / 16 - 10,
        quats=torch.cat([xyzw[:, 3:], xyzw[:, :3] * flip], dim=1),
        opacity_logits=logit(alpha[:, 0]),
        rgb=C0 * (colour - 0.5) / COLOUR + 0.5,
    )
    return to_gaussians(columns, Y_DOWN, name)


def unzip(packed: bytes, name: str) -> tuple[int, int, int, bytes]:
    """Version, count, fractional bits and the columns. What is unpacked is bounded by what the header declares."""
    if packed[:4] == b"NGSP":
        raise ValueError(f"{name} is an .spz of version 4 or later; versions 2 and 3 are read.")
    try:
        header = zlib.decompressobj(31).decompress(packed, HEADER.size)
        if len(header) < HEADER.size:
            raise ValueError(f"{name} is not an .spz file (no header).")
        magic, version, count, degree, fractional_bits, _, _ = HEADER.unpack(header)
        if magic != MAGIC or version not in TURN_BYTES or degree >= len(HARMONICS) or fractional_bits > 23:
            raise ValueError(f"{name} is not an .spz of version 2 or 3 that can be read.")
        if not 0 < count <= LIMIT:
            raise ValueError(f"{name} declares {count} splats; from 1 to {LIMIT} can be read.")
        size = HEADER.size + count * (16 + TURN_BYTES[version] + HARMONICS[degree])
        stream = zlib.decompressobj(31)
        data = stream.decompress(packed, size + 1)
    except zlib.error:
        raise ValueError(f"{name} is not an .spz file, or damaged: it is not whole gzip data.") from None
    if len(data) != size or not stream.eof:
        raise ValueError(f"{name} is cut short or too long for {count} splats of an .spz.")
    return version, count, fractional_bits, data[HEADER.size :]
