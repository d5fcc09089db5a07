"""What steers a prior's ControlNet, as data of a recipe: a drawing of each view, and how much it counts there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from .core import Cameras, Control
from .landmarks import MEDIAPIPE_FACE, OPENPOSE_FACE, Convention, draw, fade
from .representations.head_files import TemplateChoice


@dataclass(frozen=True)
class Landmarks(TemplateChoice):
    """The landmarks of a head template, as in HeadSculpt (arXiv 2306.03038): the face is where the template's is.

    draws: "mediapipe" for CrucibleAI/ControlNetMediaPipeFace, "openpose" for lllyasviel/control_v11p_sd15_openpose.
    scale: from the front; it falls with the cosine of the angle to 0 at the side, and the back is not steered.
    The template should be the one that the stage begins with.
    """

    draws: Literal["mediapipe", "openpose"] = "mediapipe"
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale < 0:
            raise ValueError(f"scale must be at least 0, given {self.scale}.")

    @cached_property
    def face(self) -> tuple[Convention, tuple[int, ...], Tensor, Tensor]:
        """The convention, and its points on the template: numbers, places and normals.

        Raises ValueError for files that are missing or no template.
        """
        template = self.found()
        convention, points = {
            "mediapipe": (MEDIAPIPE_FACE, template.contours),
            "openpose": (OPENPOSE_FACE, template.landmarks),
        }[self.draws]
        return convention, points.ids, *template.at(points, template.vertices)

    def __call__(self, cameras: Cameras) -> Control:
        """Pictures in the cameras' size, and the scale of each view. Raises ValueError as `face` does."""
        convention, numbers, points, normals = self.face
        return draw(convention, numbers, points, cameras, normals).to(cameras.c2w), self.scale * fade(cameras)
