"""Multi-view diffusion: several views of one object are denoised jointly (MVDream, Shi et al. 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..cameras import opencv_to_opengl
from ..core import Cameras

GROUP = 4  # views denoised jointly


class JointAttention:
    """An attention processor whose self-attention sees the tokens of `views` consecutive rows as one sequence.

    Rows come object-major, view-minor. With views = 1 it is the ordinary attention of the network. Cross-attention is
    untouched. `views` arrives at each call through `cross_attention_kwargs={"views": n}`, so the module holds no state.
    """

    def __call__(
        self,
        attn,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        views: int = 1,
    ) -> Tensor:
        rows, length, width = hidden_states.shape
        joined = views if encoder_hidden_states is None else 1
        x = hidden_states.reshape(rows // joined, joined * length, width)
        context = x if encoder_hidden_states is None else encoder_hidden_states

        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # [rows, heads, tokens, channels]

        q, k, v = heads(attn.to_q(x)), heads(attn.to_k(context)), heads(attn.to_v(context))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        y = attn.to_out[1](attn.to_out[0](y.transpose(1, 2).flatten(2)))
        return y.reshape(rows, length, width)


def camera_vector(cameras: Cameras) -> Float[Tensor, "B 16"]:
    """The camera as MVDream's networks see it: rotation and unit translation, row-major, axes of OpenGL.

    The distance and the angle of view are not told.
    """
    pose = opencv_to_opengl(cameras.c2w)
    position = F.normalize(pose[:, :3, 3], dim=-1)
    pose = torch.cat([torch.cat([pose[:, :3, :3], position[:, :, None]], dim=2), pose[:, 3:]], dim=1)
    return pose.flatten(1)


class OptionalCamera(nn.Module):
    """A network's camera embedding for the rows that have a camera, and exactly nothing for those that have none.

    A network trained with cameras dropped sees no embedding at all then, which differs from that of a camera of zeros.
    Rows of both sorts can share one forward: a seventeenth number says which is which.
    """

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    @staticmethod
    def labels(camera: Float[Tensor, "N 16"] | None, rows: int) -> Float[Tensor, "N 17"]:
        """What to hand to the network as class labels."""
        if camera is None:
            return torch.zeros(rows, 17)
        return torch.cat([camera, camera.new_ones(rows, 1)], dim=1)

    def forward(self, labels: Float[Tensor, "N 17"]) -> Tensor:
        return self.embed(labels[:, :16]) * labels[:, 16:]
