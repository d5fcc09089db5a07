"""How fast the mesh rasteriser is on the CPU: `python benchmarks/raster.py` writes `results/raster.json`.

A sphere of 5,120 triangles with waves on it, 4 views of 64 and 128 pixels, one thread. A time is one forward and
backward pass through autograd, from vertices and colours to their gradients, with normals, antialiased silhouettes and
background; once more with textures of 256 x 256 texels under `Pbr`. The C z-buffer and PyTorch's take turns pass by
pass, so that other programs on the machine slow both alike, and what is compared is the ratio. The error is that of
float32 against the same renderer in float64.

What a user would pick instead on the CPU is PyTorch's own path, which is the column "torch": pyrender and trimesh draw
without gradients, nvdiffrast needs CUDA, and pytorch3d, which no package index has, tries every triangle at every pixel
there. "snapped" says why nvdiffrast finds no triangles for us on CUDA either: it rounds corners to a sixteenth of a
pixel, as chips do, and this is how far the same renderer in float64 then is from itself.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from splats import BACKGROUND, VIEWS, cameras, commit, hardware, upstream

from sds3d.core import Cameras
from sds3d.renderers import kernels, raster, zbuffer_torch
from sds3d.renderers.raster import Raster
from sds3d.renderers.shading import Lambert, Light, Pbr
from sds3d.representations.mesh import Mesh, Triangles, icosphere
from sds3d.representations.texture import unwrap

HERE = Path(__file__).parent
RUNS = 41
TEXELS = 256
SUBPIXELS = 16  # a side, of nvdiffrast's rasteriser
LIGHT = Lambert()


def bumpy() -> Mesh:
    """5,120 triangles and waves, so that there are silhouettes inside the picture too."""
    sphere = icosphere(4)
    n = sphere.base
    waves = torch.sin(7 * n[:, 0]) * torch.sin(6 * n[:, 1] + 1) * torch.cos(5 * n[:, 2])
    return Mesh(0.7 * n * (1 + 0.15 * waves)[:, None], sphere.faces, 2 * torch.sin(4 * n))


def step(mesh: Triangles, cams: Cameras, above: torch.Tensor, light: Light = LIGHT) -> torch.Tensor:
    """One forward and backward pass; the picture."""
    mesh.zero_grad(set_to_none=True)
    out = Raster(light)(mesh, cams, BACKGROUND)
    out.rgb.backward(above.to(out.rgb))
    return out.rgb.detach()


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def in_turns(call: Callable[[], object]) -> dict[str, float]:
    """Median CPU milliseconds of a call with each z-buffer, and the median of the ratios of neighbouring passes."""
    times: dict[str, list[float]] = {"c": [], "torch": []}
    for run in range(RUNS + 2):
        for kernel, found in times.items():
            os.environ["SDS3D_KERNEL"] = kernel
            spent = seconds(call)
            if run >= 2:
                found.append(1e3 * spent)
    del os.environ["SDS3D_KERNEL"]
    ratios = [slow / fast for fast, slow in zip(*times.values(), strict=True)]
    medians = {f"{kernel}, ms": round(statistics.median(found), 2) for kernel, found in times.items()}
    return medians | {"times_faster_in_c": round(statistics.median(ratios), 2)}


def snapped(local: torch.Tensor, faces: torch.Tensor, cams: Cameras) -> torch.Tensor:
    """The z-buffer of corners that are rounded to a part of a pixel."""
    K, z = cams.K.to(local)[:, None], local[..., 2:]
    focal, centre = K[..., [0, 1], [0, 1]], K[..., :2, 2]
    pixel = ((local[..., :2] / z * focal + centre) * SUBPIXELS).round() / SUBPIXELS
    return zbuffer_torch.zbuffer(torch.cat([(pixel - centre) / focal * z, z], dim=-1), faces, cams)


def errors(size: int, mesh: Mesh, zbuffer: Callable[..., torch.Tensor] = raster.zbuffer) -> dict[str, float]:
    """Relative L2 distance of picture and gradients to the same renderer in float64."""
    double, cams, above = bumpy().double(), cameras(size), upstream(size)
    with mock.patch.object(raster, "zbuffer", zbuffer):
        picture = step(mesh, cams, above)
    pairs = {"rgb": (picture, step(double, cams, above))}
    for (name, p), q in zip(mesh.named_parameters(), double.parameters(), strict=True):
        pairs[f"gradient of {name}"] = (p.grad, q.grad)
    return {name: float(f"{(a.double() - b).norm() / b.norm():.1e}") for name, (a, b) in pairs.items()}


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    if kernels.backend().library is None:
        raise SystemExit(f"There is no C kernel to measure: {kernels.backend().why}.")
    rows, mesh = [], bumpy()
    textured = unwrap(mesh, TEXELS)
    for size in (64, 128):
        cams, above = cameras(size).to(mesh.base), upstream(size)
        w2c = torch.linalg.inv(cams.c2w)
        local = torch.einsum("bij,vj->bvi", w2c[:, :3, :3], mesh.base) + w2c[:, None, :3, 3]
        same = torch.equal(raster.zbuffer(local, mesh.faces, cams), zbuffer_torch.zbuffer(local, mesh.faces, cams))
        rows.append(
            {"px": size, "triangles": len(mesh), "views": VIEWS, "same_pixels": same}
            | {"forward_and_backward": in_turns(lambda c=cams, a=above: step(mesh, c, a))}
            | {"textured_and_physically_based": in_turns(lambda c=cams, a=above: step(textured, c, a, Pbr()))}
            | {"z_buffer_alone": in_turns(lambda v=local, c=cams: raster.zbuffer(v, mesh.faces, c))}
            | {"relative_error_to_float64": errors(size, bumpy())}
            | {"snapped, relative_error_to_float64": errors(size, bumpy().double(), snapped)}
        )
        print(rows[-1], file=sys.stderr)
    result = {
        "what": "CPU mesh rasteriser, forward + backward through autograd with light, normals, silhouettes, background",
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "command": "python benchmarks/raster.py",
        "hardware": hardware() | {"load_average": os.getloadavg()},
        "one_thread": rows,
    }
    (HERE / "results" / "raster.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
