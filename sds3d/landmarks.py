"""Control images of landmarks, as the ControlNets that were trained on detectors' drawings expect them.

| convention       | a ControlNet                          | points                            | drawn                 |
|------------------|---------------------------------------|-----------------------------------|-----------------------|
| `MEDIAPIPE_FACE` | CrucibleAI/ControlNetMediaPipeFace    | MediaPipe's numbers of contours   | lines and two pupils  |
| `OPENPOSE_FACE`  | lllyasviel/control_v11p_sd15_openpose | 0-67 as iBUG's, 68 and 69 pupils  | white dots            |
| `OPENPOSE_BODY`  | the same                              | 0-17 as `BODY`, OpenPose's order  | ellipses and joints   |
| `OPENPOSE_HAND`  | the same, hands as DWPose draws them  | 0-20, the wrist, then each finger | lines and blue joints |

Colours are RGB as the network sees them. Widths are those of a picture of 512 pixels and grow with it. The drawings go
by pixels, without antialiasing, as those that the networks learnt from. What faces away from the camera or lies behind
what it sees is not drawn, and from behind the control fades out. Nothing here is differentiable.
"""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from .cameras import world_to_camera
from .core import Cameras, Image

RGB = tuple[int, int, int]
SIDE = 512  # pixels of the picture in which widths are given
AWAY = -0.1  # cosine between a normal and the way to the camera below which a point faces away
BEHIND = 0.03  # world units by which a point may lie behind what is seen, on whose surface it is
AROUND = 1 / 64  # of the picture: hidden is what lies behind everything so near, as a silhouette's edge does not


@dataclass(frozen=True)
class Stroke:
    """A line between two points of these numbers."""

    start: int
    end: int
    rgb: RGB


@dataclass(frozen=True)
class Convention:
    """Strokes, then dots, later ones over earlier ones.

    width: of a line in pixels. limbs: strokes are ellipses from point to point, as wide as `width`. share: of their
    colour that strokes keep. dots: number -> colour; radius: half their size; square: their form.
    """

    name: str
    strokes: tuple[Stroke, ...] = ()
    width: float = 2.0
    limbs: bool = False
    share: float = 1.0
    dots: Mapping[int, RGB] = field(default_factory=dict)
    radius: float = 4.0
    square: bool = False
    optional: frozenset[int] = frozenset()

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of all points that are drawn, in growing order."""
        ends = itertools.chain.from_iterable((stroke.start, stroke.end) for stroke in self.strokes)
        return tuple(sorted({*ends, *self.dots}))


def _path(rgb: RGB, *numbers: int) -> list[Stroke]:
    return [Stroke(a, b, rgb) for a, b in itertools.pairwise(numbers)]


# fmt: off
_OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149,
         150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109, 10)
MEDIAPIPE_FACE = Convention(
    "mediapipe-face",
    strokes=(
        *_path((10, 200, 10), *_OVAL),
        *_path((10, 180, 10), 61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291),
        *_path((10, 180, 10), 61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291),
        *_path((10, 180, 10), 78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308),
        *_path((10, 180, 10), 78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308),
        *_path((10, 200, 180), 263, 249, 390, 373, 374, 380, 381, 382, 362),
        *_path((10, 200, 180), 263, 466, 388, 387, 386, 385, 384, 398, 362),
        *_path((180, 200, 10), 33, 7, 163, 144, 145, 153, 154, 155, 133),
        *_path((180, 200, 10), 33, 246, 161, 160, 159, 158, 157, 173, 133),
        *_path((10, 220, 180), 276, 283, 282, 295, 285),
        *_path((10, 220, 180), 300, 293, 334, 296, 336),
        *_path((180, 220, 10), 46, 53, 52, 65, 55),
        *_path((180, 220, 10), 70, 63, 105, 66, 107),
    ),
    dots={468: (250, 200, 10), 473: (10, 200, 250)},
    radius=2.0,
    square=True,
)
OPENPOSE_FACE = Convention(
    "openpose-face", dots={i: (255, 255, 255) for i in range(70)}, radius=3.0, optional=frozenset({68, 69})
)
_WHEEL: tuple[RGB, ...] = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)
BODY = ("nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
        "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
        "right eye", "left eye", "right ear", "left ear")
_LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
          (1, 0), (0, 14), (14, 16), (0, 15), (15, 17))
# fmt: on
OPENPOSE_BODY = Convention(
    "openpose-body",
    strokes=tuple(Stroke(a, b, rgb) for (a, b), rgb in zip(_LIMBS, _WHEEL, strict=False)),
    width=8.0,
    limbs=True,
    share=0.6,
    dots=dict(enumerate(_WHEEL)),
)


def _rainbow(share: float) -> RGB:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(share, 1.0, 1.0))
    return red, green, blue


_FINGERS = [pair for first in range(1, 21, 4) for pair in itertools.pairwise((0, *range(first, first + 4)))]
OPENPOSE_HAND = Convention(
    "openpose-hand",
    strokes=tuple(Stroke(a, b, _rainbow(i / len(_FINGERS))) for i, (a, b) in enumerate(_FINGERS)),
    dots={i: (0, 0, 255) for i in range(21)},
)


def project(points: Float[Tensor, "n 3"], cameras: Cameras) -> tuple[Float[Tensor, "B n 2"], Float[Tensor, "B n"]]:
    """Where each camera sees points of the world, in pixels, and their depths along its axis."""
    w2c = world_to_camera(cameras.to(points))
    local = torch.einsum("bij,nj->bni", w2c[:, :3, :3], points) + w2c[:, None, :3, 3]
    depth = local[..., 2]
    image = torch.einsum("bij,bnj->bni", cameras.K.to(points), local)
    return image[..., :2] / depth[..., None], depth


def facing(points: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"], cameras: Cameras) -> Float[Tensor, "B n"]:
    """The cosine between the normal at each point and the way to each camera; 0 where the normal is 0."""
    way = normalize(cameras.position.to(points)[:, None] - points, dim=-1)
    return (way * normals).sum(dim=-1)


def unhidden(points: Float[Tensor, "n 3"], cameras: Cameras, depth: Float[Tensor, "B h w 1"]) -> Bool[Tensor, "B n"]:
    """Whether a point is not behind all that pictures of depth by the same cameras show around it.

    The pictures may have any size; 0 is where nothing is.
    """
    h, w = depth.shape[1:3]
    at, z = project(points, cameras.resized(h, w))
    reach = round(AROUND * min(h, w))
    step = torch.arange(-reach, reach + 1, device=depth.device)
    # A point in a camera's own plane has no place in its picture; `draw` leaves it out, whatever is said of it here.
    column, row = torch.where(at.isnan(), -1.0, at).clamp(-w, 2 * w).floor().long().unbind(-1)  # [B, n]
    column, row = column[..., None, None] + step, row[..., None, None] + step[:, None]  # [B, n, k, k] together
    outside = (column < 0) | (column >= w) | (row < 0) | (row >= h)
    view = torch.arange(len(cameras), device=depth.device)[:, None, None, None]
    near = depth[view, row.clamp(0, h - 1), column.clamp(0, w - 1), 0].to(z)
    return (outside | (near <= 0) | (z[..., None, None] <= near + BEHIND)).flatten(2).any(dim=2)


def fade(cameras: Cameras) -> Float[Tensor, "B"]:
    """How much a face's control counts: the cosine of the angle between each camera and the front, 0 from behind."""
    return (cameras.position[:, 0] / cameras.radius).clamp(0, 1)


@torch.no_grad()
def draw(
    convention: Convention,
    numbers: Sequence[int],
    points: Float[Tensor, "n 3"],
    cameras: Cameras,
    normals: Float[Tensor, "n 3"] | None = None,
    depth: Float[Tensor, "B h w 1"] | None = None,
    onto: Image | None = None,
) -> Image:
    """Control images [B, H, W, 3] in [0, 1] of points in the world, on black or onto other images.

    numbers: by which the convention knows the points; others are not drawn. A point that is not finite is not drawn,
    nor are its strokes. normals: unit, what faces away is left out; a normal of 0 faces every camera. depth: what the
    cameras see, behind which nothing is drawn. Raises ValueError for numbers that the convention needs and lacks.
    """
    _check(convention, numbers, points)
    at, z = project(points, cameras)
    cosine = torch.zeros_like(z) if normals is None else facing(points, normals, cameras)
    there = (z > 0) & at.isfinite().all(dim=-1)
    if depth is not None:
        there = there & unhidden(points, cameras, depth)
    row = {number: i for i, number in enumerate(numbers)}
    H, W = cameras.height, cameras.width
    images = np.zeros((len(cameras), H, W, 3), np.float32) if onto is None else onto.float().cpu().numpy().copy()
    place, seen, turned = at.tolist(), there.tolist(), cosine.tolist()
    for view, image in enumerate(images):
        brush = _Brush(image, min(H, W) / SIDE)
        for stroke in convention.strokes:
            a, b = row[stroke.start], row[stroke.end]
            if seen[view][a] and seen[view][b] and (turned[view][a] + turned[view][b]) / 2 >= AWAY:
                brush.stroke(place[view][a], place[view][b], convention, _colour(stroke.rgb, convention.share))
        for number, rgb in convention.dots.items():
            i = row.get(number)
            if i is not None and seen[view][i] and turned[view][i] >= AWAY:
                brush.dot(place[view][i], convention, _colour(rgb, 1.0))
    return torch.from_numpy(images).to(at)


def _check(convention: Convention, numbers: Sequence[int], points: Tensor) -> None:
    if len(numbers) != len(points):
        raise ValueError(f"There are {len(points)} points, but {len(numbers)} numbers for them.")
    lost = [n for n in convention.numbers if n not in set(numbers) and n not in convention.optional]
    if lost:
        raise ValueError(f"{convention.name} draws {len(convention.numbers)} points, and number {lost[0]} is missing.")


def _colour(rgb: RGB, share: float) -> tuple[float, ...]:
    """In bytes, as the networks saw it, over 255."""
    return tuple(int(share * part) / 255 for part in rgb)


@dataclass(frozen=True)
class _Brush:
    """Paints one image [H, W, 3] in place. scale: of all widths.

    It paints arrays, not tensors: a face is some hundred strokes of a few pixels each, and each costs its overhead.
    """

    image: np.ndarray
    scale: float

    def stroke(self, a: Sequence[float], b: Sequence[float], convention: Convention, rgb: tuple[float, ...]) -> None:
        half = max(convention.width / 2 * self.scale, 0.5)
        (ax, ay), (bx, by) = a, b
        length = max(math.hypot(bx - ax, by - ay), 1e-9)
        ux, uy = (bx - ax) / length, (by - ay) / length
        box = (min(ax, bx) - half, min(ay, by) - half, max(ax, bx) + half, max(ay, by) + half)
        part, x, y = self._pixels(box)
        x, y = x - (ax + bx) / 2, y - (ay + by) / 2
        along, across = np.abs(x * ux + y * uy), y * ux - x * uy
        if convention.limbs:
            inside = np.square(along / max(length / 2, half)) + np.square(across / half) <= 1
        else:
            inside = np.hypot(np.maximum(along - length / 2, 0), across) <= half
        part[inside] = rgb

    def dot(self, centre: Sequence[float], convention: Convention, rgb: tuple[float, ...]) -> None:
        half = max(convention.radius * self.scale, 0.5)
        cx, cy = centre
        part, x, y = self._pixels((cx - half, cy - half, cx + half, cy + half))
        x, y = np.abs(x - cx), np.abs(y - cy)
        part[(np.maximum(x, y) if convention.square else np.hypot(x, y)) <= half] = rgb

    def _pixels(self, box: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The part [h, w, 3] of the image in a box, and where its pixels' centres are: x [w], y [h, 1]."""
        H, W = self.image.shape[:2]
        left, top, right, bottom = (
            max(0, min(int(end), limit)) for end, limit in zip(box, (W, H, W - 1, H - 1), strict=True)
        )
        x, y = np.arange(left, right + 1) + 0.5, np.arange(top, bottom + 1)[:, None] + 0.5
        return self.image[top : bottom + 1, left : right + 1], x, y
