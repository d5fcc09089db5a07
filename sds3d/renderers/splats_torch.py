"""Gaussian splatting in plain PyTorch, sparse: pairs of a pixel and a Gaussian, sorted into one segment per pixel.

It draws on any device with float64 and in both floating-point precisions, and it is what remains where there is neither
a C compiler nor gsplat. The image formation, shared by all backends:

* EWA projection of a pinhole camera (Zwicker et al. 2002), 0.3 pixel^2 low-pass, the Jacobian's ray clamped to 1.3
  times the half picture, as 3DGS and gsplat;
* alpha = min(0.999, opacity exp(-d^2 / 2)), dropped below 1 / 255;
* front to back by camera z, until the transmittance is at most 1e-4 (the Gaussian that gets there still counts);
* a Gaussian with any number that is not finite, or a quaternion of length 0, is not drawn and gets no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..cameras import world_to_camera
from ..core import Cameras
from ..representations.gaussians import rotation_matrix

NEAR = 0.01  # camera z below which nothing is drawn, as gsplat
LOW_PASS = 0.3  # pixel^2 added to each projected variance
MIN_ALPHA = 1 / 255
MAX_ALPHA = 0.999
MIN_TRANSMITTANCE = 1e-4
CLAMP = 0.3  # share of the half picture's tangent that the Jacobian's ray may lie outside


@dataclass(frozen=True)
class Shapes:
    """M Gaussians as every backend takes them: numbers as they act, not their logarithms and logits; quats wxyz."""

    means: Float[Tensor, "M 3"]
    scales: Float[Tensor, "M 3"]
    quats: Float[Tensor, "M 4"]
    opacities: Float[Tensor, "M"]
    rgb: Float[Tensor, "M 3"]

    def tensors(self) -> tuple[Tensor, ...]:
        return self.means, self.scales, self.quats, self.opacities, self.rgb


@dataclass(frozen=True)
class Drawn:
    """What every backend returns for B views.

    colour: [B, H, W, 3] over black. alpha: [B, H, W, 1]. depth: [B, H, W, 1], the alpha-weighted sum of camera z.
    means2d: [B, M, 2] in [-1, 1] across the picture, which keeps its gradient. radii: [B, M] in pixels, three
    standard deviations along the long axis, 0 where nothing is in the picture.
    """

    colour: Float[Tensor, "B H W 3"]
    alpha: Float[Tensor, "B H W 1"]
    depth: Float[Tensor, "B H W 1"]
    means2d: Float[Tensor, "B M 2"]
    radii: Float[Tensor, "B M"]


def finite(shapes: Shapes) -> Tensor:
    """[M], false where any number of a Gaussian is not finite, or its quaternion has no direction."""
    kept = [torch.isfinite(t).reshape(len(t), -1).all(dim=-1) for t in shapes.tensors()]
    return torch.stack([*kept, shapes.quats.norm(dim=-1) > 0]).all(dim=0)


def project(shapes: Shapes, cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel positions [B, M, 2], covariances [B, M, 3] (xx, xy, yy) in pixel^2 and camera z [B, M].

    Where z is below NEAR the position and the covariance are those of a stand-in at z = 1.
    """
    w2c = world_to_camera(cameras)
    local = torch.einsum("bij,mj->bmi", w2c[:, :3, :3], shapes.means) + w2c[:, None, :3, 3]
    z = local[..., 2]
    safe = torch.where(z > NEAR, z, 1.0)
    focal = torch.stack([cameras.K[:, 0, 0], cameras.K[:, 1, 1]], dim=-1)[:, None]  # [B, 1, 2]
    centre = cameras.K[:, None, :2, 2]
    size = centre.new_tensor([cameras.width, cameras.height])
    ray = local[..., :2] / safe[..., None]
    margin = CLAMP * size / (2 * focal)
    bound = torch.minimum(torch.maximum(ray, -centre / focal - margin), (size - centre) / focal + margin)
    half = rotation_matrix(shapes.quats) * shapes.scales[:, None]  # [M, 3, 3], covariance = half half^T
    half = torch.einsum("bij,mjk->bmik", w2c[:, :3, :3], half)
    flat = (focal / safe[..., None])[..., None] * (
        half[..., :2, :] - bound[..., None] * half[..., 2:, :]
    )  # [B, M, 2, 3]
    xx, yy = flat.square().sum(-1).unbind(-1)
    xy = (flat[..., 0, :] * flat[..., 1, :]).sum(-1)
    return focal * ray + centre, torch.stack([xx + LOW_PASS, xy, yy + LOW_PASS], dim=-1), z


@torch.no_grad()
def rectangles(
    pixels: Tensor, cov: Tensor, z: Tensor, opacities: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """First pixel and size (x, y) [B, M, 2] of the rectangle where alpha can reach 1 / 255; size 0 for the unseen."""
    reach = 2 * torch.log(opacities / MIN_ALPHA)  # squared distance in standard deviations
    half = (reach.clamp(min=0)[:, None] * cov[..., ::2]).sqrt() + 1e-3  # slack for rounding: the exact cut comes later
    limit = pixels.new_tensor([width, height])
    low = (pixels - half - 0.5).ceil().clamp(min=0).minimum(limit)
    high = (pixels + half + 0.5).floor().clamp(min=0).minimum(limit)
    drawn = (z > NEAR) & (reach >= 0) & torch.isfinite(cov).all(-1) & torch.isfinite(pixels).all(-1)
    size = torch.where(drawn[..., None], (high - low).clamp(min=0), 0.0)
    return torch.where(drawn[..., None], low, 0.0).long(), size.long()


@torch.no_grad()
def _pairs(pixels: Tensor, cov: Tensor, z: Tensor, opacities: Tensor, corner: Tensor, size: Tensor, cameras: Cameras):
    """Which pixel meets which Gaussian: flat indices into [B H W] and [B M], sorted by pixel and there by depth."""
    count = size.prod(-1).flatten()
    order = torch.argsort(z.flatten(), stable=True)  # the views mix here and are told apart by their pixels
    order = order[count[order] > 0]
    element = torch.repeat_interleave(order, count[order])
    start = count[order].cumsum(0) - count[order]
    offset = torch.arange(len(element), device=z.device) - torch.repeat_interleave(start, count[order])
    wide = size.reshape(-1, 2)[element, 0]
    x = corner.reshape(-1, 2)[element, 0] + offset % wide
    y = corner.reshape(-1, 2)[element, 1] + offset // wide
    view = element // z.shape[1]
    pixel = (view * cameras.height + y) * cameras.width + x
    alpha = _alpha(pixel, element, pixels, cov, opacities, cameras)
    seen = alpha >= MIN_ALPHA
    pixel, element = pixel[seen], element[seen]
    pixel, order = torch.sort(pixel, stable=True)
    return pixel, element[order]


def _alpha(pixel: Tensor, element: Tensor, pixels: Tensor, cov: Tensor, opacities: Tensor, cameras: Cameras) -> Tensor:
    """The alpha of each pair, not yet clamped. The quadratic form is a sum of squares, so it never cancels."""
    x = pixel % cameras.width + 0.5
    y = pixel // cameras.width % cameras.height + 0.5
    shift = torch.stack([x, y], dim=-1) - pixels.reshape(-1, 2)[element]
    xx, xy, yy = cov.reshape(-1, 3).unbind(-1)
    shear = xy / yy
    precision = 1 / (xx - shear * xy)
    across = shift[:, 0] - shear[element] * shift[:, 1]
    distance = shift[:, 1].square() / yy[element] + precision[element] * across.square()
    return opacities[element % len(opacities)] * torch.exp(-distance / 2)


def _before(alpha: Tensor, pixel: Tensor) -> Tensor:
    """Transmittance in front of each pair of a segment: the product of 1 - alpha of the pairs before it.

    The sums of logarithms run over all segments at once; float64 keeps the difference of two of them exact enough.
    """
    log = torch.log1p(-alpha.double())
    total = log.cumsum(0) - log
    first = torch.searchsorted(pixel, pixel)  # left: the segment's first pair
    return torch.exp(total - total[first]).to(alpha.dtype)


def draw(shapes: Shapes, cameras: Cameras) -> Drawn:
    """Draw M Gaussians in B views; differentiable in all five tensors of `shapes`. Memory grows with the pairs."""
    kept, cameras = finite(shapes), cameras.to(shapes.means)
    stand_ins = (0.0, 1.0, 1.0, 0.0, 0.0)  # values without effect and with finite derivatives
    shapes = Shapes(
        *(
            torch.where(kept.reshape(-1, *[1] * (t.ndim - 1)), t, stand_in)
            for t, stand_in in zip(shapes.tensors(), stand_ins, strict=True)
        )
    )
    B, H, W = len(cameras), cameras.height, cameras.width
    pixels, cov, z = project(shapes, cameras)
    size = pixels.new_tensor([W, H])
    means2d = 2 * pixels / size - 1
    if means2d.requires_grad:
        means2d.retain_grad()
    pixels = (means2d + 1) * size / 2
    corner, extent = rectangles(pixels, cov, z, shapes.opacities, H, W)
    with torch.no_grad():
        mean, spread = (cov[..., 0] + cov[..., 2]) / 2, (cov[..., 0] - cov[..., 2]) / 2
        radii = 3 * (mean + torch.hypot(spread, cov[..., 1])).sqrt() * (extent.prod(-1) > 0)
        pixel, element = _pairs(pixels, cov, z, shapes.opacities, corner, extent, cameras)
        alpha = _alpha(pixel, element, pixels, cov, shapes.opacities, cameras).clamp(max=MAX_ALPHA)
        live = _before(alpha, pixel) > MIN_TRANSMITTANCE
        pixel, element = pixel[live], element[live]
    alpha = _alpha(pixel, element, pixels, cov, shapes.opacities, cameras).clamp(max=MAX_ALPHA)
    weight = alpha * _before(alpha, pixel)
    features = torch.cat(
        [shapes.rgb[element % len(z[0])], z.flatten()[element, None], torch.ones_like(alpha)[:, None]], -1
    )
    sums = features.new_zeros(B * H * W, 5).index_add(0, pixel, weight[:, None] * features).reshape(B, H, W, 5)
    return Drawn(sums[..., :3], sums[..., 4:], sums[..., 3:4], means2d, radii)
