"""What an asset is worth, measured against the exact scene of its caption.

An asset is anything that can be drawn: a function of cameras and a background colour [B, 3] that returns a
`RenderOutput`. So exact scenes, representations and deliberately broken controls are measured by the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..cameras import orbit
from ..core import Cameras, RenderOutput
from .grammar import Head, Spec
from .head import HAIR_RGB
from .render import render
from .scenes import Part, Scene, build

Draw = Callable[[Cameras, Tensor], RenderOutput]
RINGS_DEG, AZIMUTHS, SIZE = (0.0, 15.0, 30.0), 8, 64  # 24 views
COUNTED_IOU = 0.7  # below this a head is no head, and its faces are not counted


@dataclass(frozen=True)
class Quality:
    """An asset against its exact scene, over 24 views.

    iou: mean silhouette overlap at alpha 0.5. psnr: of the colour over white, in dB, inside the true silhouette. haze:
    mean alpha outside it. saturation: mean chroma (max - min channel) over the true one's, inside both. two_faced,
    faceless: for heads with iou >= 0.7, else None. chroma_error: mean chroma less the true one's, inside both, in
    [-1, 1]; above 0 is too colourful; unlike the ratio it is defined for grey objects too. None where nothing overlaps.
    two_facedness: of a head, in dB, how much nearer the drawn back is to the true front than to the true back; above 0
    it is two-faced. None for what has no face.
    """

    iou: float
    psnr: float
    haze: float
    saturation: float
    two_faced: bool | None = None
    faceless: bool | None = None
    chroma_error: float | None = None
    two_facedness: float | None = None

    @property
    def counted(self) -> bool:
        """Whether this is a head whose faces are counted."""
        return self.two_faced is not None


def views() -> Cameras:
    """The 24 cameras of every measure: rings at 0, 15 and 30 degrees, the first of each in front."""
    azimuth = torch.arange(AZIMUTHS) * 360 / AZIMUTHS
    return orbit(azimuth.repeat(len(RINGS_DEG)), torch.tensor(RINGS_DEG).repeat_interleave(AZIMUTHS), SIZE)


def scene_draw(scene: Scene) -> Draw:
    """The exact scene as an asset."""
    return lambda cameras, rgb: render(scene, cameras, rgb, samples=2)


def iou(alpha: Float[Tensor, "B H W 1"], true: Float[Tensor, "B H W 1"]) -> Float[Tensor, "B"]:
    """Overlap of two silhouettes at alpha 0.5, per view; 1 where both are empty."""
    a, b = alpha > 0.5, true > 0.5
    both, either = (a & b).sum(dim=(1, 2, 3)), (a | b).sum(dim=(1, 2, 3))
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


def psnr(rgb: Tensor, true: Tensor, mask: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of colours [..., 3] in [0, 1] where mask [..., 1] holds."""
    error = (rgb - true).square()[mask.expand_as(rgb)].mean()
    return float(-10 * torch.log10(error.clamp_min(1e-10)))


@torch.no_grad()
def measure(spec: Spec, draw: Draw) -> Quality:
    """Judge an asset of a fully determined caption."""
    cameras, white = views(), torch.ones(len(RINGS_DEG) * AZIMUTHS, 3)
    got, true = draw(cameras, white), render(build(spec), cameras, white, samples=2)
    inside = true.alpha > 0.5
    both = inside & (got.alpha > 0.5)
    chroma = [(out.rgb.amax(-1) - out.rgb.amin(-1))[both[..., 0]].mean() for out in (got, true)]
    overlap = float(iou(got.alpha, true.alpha).mean())
    margins = face_margins(spec, got, true) if isinstance(spec, Head) else (None, None)
    faces = [None if margin is None or overlap < COUNTED_IOU else margin > 0 for margin in margins]
    return Quality(
        iou=overlap,
        psnr=psnr(got.rgb, true.rgb, inside),
        haze=float(got.alpha[~inside].mean()),
        saturation=float(chroma[0] / chroma[1].clamp_min(1e-6)) if bool(both.any()) else 0.0,
        two_faced=faces[0],
        faceless=faces[1],
        chroma_error=float(chroma[0] - chroma[1]) if bool(both.any()) else None,
        two_facedness=margins[0],
    )


def face_margins(spec: Head, got: RenderOutput, true: RenderOutput) -> tuple[float, float]:
    """How much nearer, in dB, the drawn back is to the true front than to the true back, and the front to the back.

    Each is a difference of two PSNRs over the same pixels, inside the true mask: a back above 0 is two-faced, a front
    above 0 faceless. The other side is seen in the light that falls on this side, so that light does not count.
    """
    front = torch.arange(len(RINGS_DEG)) * AZIMUTHS
    scene = build(spec)

    def margin(rows: Tensor, side: float) -> float:
        cameras = views()
        there = Cameras(cameras.c2w[rows], cameras.K[rows], cameras.height, cameras.width)
        other = render(folded(scene, side), there, torch.ones(len(rows), 3), samples=2)
        mask = true.alpha[rows] > 0.5
        return psnr(got.rgb[rows], other.rgb, mask) - psnr(got.rgb[rows], true.rgb[rows], mask)

    return margin(front + AZIMUTHS // 2, 1.0), margin(front, -1.0)


def folded(scene: Scene, side: float) -> Scene:
    """The scene with its front (side = 1) or its back (side = -1) on both sides."""

    def fold(p: Tensor) -> Tensor:
        return torch.cat([side * p[..., :1].abs(), p[..., 1:]], dim=-1)

    def part(original: Part) -> Part:
        rgb = original.rgb
        return Part(lambda p: original.solid(fold(p)), (lambda p: rgb(fold(p))) if callable(rgb) else rgb)

    return Scene(scene.caption, tuple(part(original) for original in scene.parts))


def controls(head: Head) -> dict[str, tuple[Draw, Callable[[Quality], bool]]]:
    """Broken assets of a head, each with the test that must flag it."""
    scene = build(head)
    hair = Scene(scene.caption, tuple(Part(part.solid, HAIR_RGB[head.hair]) for part in scene.parts))
    nothing = Scene(scene.caption, (Part(lambda p: p.norm(dim=-1) + 1.0, (0.0, 0.0, 0.0)),))
    return {
        "a second face behind": (scene_draw(folded(scene, 1.0)), lambda quality: quality.two_faced is True),
        "a ball of hair": (scene_draw(hair), lambda quality: quality.faceless is True),
        "an empty asset": (scene_draw(nothing), lambda quality: not quality.counted and quality.iou < 0.6),
    }


def contrasting_background(scene: Scene, colours: dict[str, tuple[float, float, float]]) -> str:
    """The name of the plain colour that is farthest from every colour of the object."""
    out = render(scene, orbit([0, 90, 180, 270], 15.0, SIZE), torch.zeros(4, 3), samples=1)
    seen = out.rgb[out.alpha[..., 0] > 0.5]
    nearest = {name: float((seen - torch.tensor(rgb)).norm(dim=-1).min()) for name, rgb in colours.items()}
    return max(nearest, key=lambda name: nearest[name])
