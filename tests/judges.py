"""Programs that nobody here wrote, which read our files; most are installed by npm into a folder that git ignores.

| program          | reads                    | tells                                        |
|------------------|--------------------------|----------------------------------------------|
| gltf-validator   | glb, glb-splat           | what is wrong                                |
| splat-transform  | ply, spz, splat          | its columns; a picture by its own rasteriser |
| Spark            | ply, spz, splat          | a picture, in Chromium                       |
| three.js         | ply, spz, splat, glb-splat | a picture, in Chromium, and its accessors  |
| model-viewer     | glb                      | a picture, in Chromium                       |
| usd-core         | usdz                     | what is wrong                                |

A viewer takes a file's axes as its world's, so that our camera is turned into them: `FRAMES`. splat-transform alone
turns what it reads to y-up. Pictures lie over green, whose channels no transfer function of a viewer changes.
"""

from __future__ import annotations

import csv
import functools
import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from sds3d.cameras import orbit
from sds3d.core import Background, Cameras, Renderer, Representation
from sds3d.export import glb_splat, ply
from sds3d.export.gltf import read_glb
from sds3d.export.splats import C0, Y_DOWN, Y_UP
from sds3d.playroom.bench import MASK_DISTANCE
from sds3d.playroom.measures import iou, psnr
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import Gaussians, rotation_matrix

FOLDER = Path(__file__).parent / "validators"
# The rotation (wxyz) from our axes to those of a file. Niantic's are right, up, back: (x, y, z) -> (-y, z, -x).
FRAMES = {"ply": Y_DOWN, "splat": Y_DOWN, "spz": (0.5, -0.5, 0.5, 0.5), "glb-splat": Y_UP, "glb": Y_UP}
GREEN = (0.0, 1.0, 0.0)
# splat-transform 2.7.1 on SwiftShader loses nearly every splat in pictures of 17 to 256 tiles of 16 x 16 pixels.
SIZE = 320
VIEW = orbit([30.0], 20.0, SIZE)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The rounding of each format: of positions, log scales, rotations (as matrices), opacities and colours.
ROUNDING = {
    "ply": (0.0, 0.0, 1e-6, 1e-6, 1e-6),
    "spz": (0.51 / 4096, 0.51 / 16, 4e-3, 0.51 / 255, 0.51 / 255 * C0 / 0.15),
    # Programs take a byte b of a rotation as (b - 128) / 128 or as b / 127.5 - 1, half a step apart.
    "splat": (0.0, 1e-6, 3e-2, 0.51 / 255, 0.51 / 255),
    "glb-splat": (0.0, 1e-6, 1e-6, 1e-6, 1e-6),
}
ROUNDING["ply"] = ROUNDING["glb-splat"]
SAID: list[str] = []  # what is told with the result of the tests


@functools.cache
def _install() -> str:
    """Install the pinned programs; returns why that is not possible, or nothing."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        return "node and npm are not installed; on Debian: apt-get install nodejs npm"
    locked = (FOLDER / "package-lock.json").read_bytes()
    stamp = FOLDER / "node_modules" / "installed.json"
    if not stamp.exists() or stamp.read_bytes() != locked:
        command = ["npm", "ci", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=300)
        if done.returncode:
            return f"npm cannot install what tests/validators/package.json names: {done.stderr.strip()[-300:]}"
        stamp.write_bytes(locked)
    SAID.extend(f"{name} {version}" for name, version in versions().items())
    return ""


def versions() -> dict[str, str]:
    """The pinned programs, and the browser that is installed."""
    pinned = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    browser = _browser()
    if browser is None:
        return pinned
    said = subprocess.run([browser, "--version"], capture_output=True, text=True, timeout=60).stdout
    return {**pinned, "chromium": said.split()[1]}


def program(name: str) -> Path:
    """The path of an installed program; the test is skipped where node or the registry is missing."""
    why = _install()
    if why:
        pytest.skip(why)
    return FOLDER / "node_modules" / ".bin" / name


def _browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def chromium() -> str:
    """The path of a Chromium; the test is skipped where there is none."""
    browser = _browser()
    if browser is None:
        pytest.skip("No Chromium is installed; on Debian: apt-get install chromium")
    return browser


def validate(path: Path) -> list[dict[str, Any]]:
    """What the Khronos glTF validator has to say about a .glb: its issues, severity 0 errors to 3 hints."""
    program("")
    command = ["node", str(FOLDER / "validate.mjs"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)["issues"]["messages"]


def validate_usd(path: Path) -> list[Any]:
    """What Pixar's own validators find in a .usdz."""
    usd: Any = importlib.import_module("pxr.Usd")
    validation: Any = importlib.import_module("pxr.UsdValidation")
    known = validation.ValidationRegistry().GetOrLoadAllValidators()
    return validation.ValidationContext(known).Validate(usd.Stage.Open(str(path)))


def is_blind(issue: dict[str, Any]) -> bool:
    """Whether an issue is that gltf-validator does not know KHR_gaussian_splatting: the extension, or an attribute."""
    if issue["code"] == "MESH_PRIMITIVE_INVALID_ATTRIBUTE":
        told = issue["message"] + issue.get("pointer", "")
        return any(name in told for name in glb_splat.WIDTHS if name.startswith(glb_splat.NAME))
    return issue["code"] == "UNSUPPORTED_EXTENSION" and issue["severity"] >= 2 and glb_splat.NAME in issue["message"]


def columns(file: Path) -> dict[str, np.ndarray]:
    """What splat-transform reads in a file, by the names of a .ply."""
    out = file.with_suffix(file.suffix + ".csv")
    subprocess.run([program("splat-transform"), "-q", "-w", file, out], check=True, capture_output=True)
    with out.open() as stream:
        names, *rows = csv.reader(stream)
    table = np.array(rows, dtype=np.float64)
    return {name.strip(): table[:, i] for i, name in enumerate(names)}


def columns_of_ply(gaussians: Gaussians) -> dict[str, np.ndarray]:
    """Our own numbers, by the names of a .ply."""
    table = ply.read_table(ply.encode(gaussians, Splats(), {}, "a.ply")["a.ply"], "a.ply")
    return {name: table[name].astype(np.float64) for name in ply.NEEDED}


def apart(theirs: dict[str, np.ndarray], own: dict[str, np.ndarray]) -> tuple[float, ...]:
    """The largest differences of columns, in the order of `ROUNDING`."""

    def largest(names: str, of: Callable[[np.ndarray], Any] = lambda table: table) -> float:
        a, b = (of(np.stack([table[name] for name in names.split()], axis=1)) for table in (theirs, own))
        return float(abs(a - b).max())

    return (
        largest("x y z"),
        largest("scale_0 scale_1 scale_2"),
        largest("rot_0 rot_1 rot_2 rot_3", lambda quats: rotation_matrix(torch.from_numpy(quats)).numpy()),
        largest("opacity", lambda logit: 1 / (1 + np.exp(-logit))),
        C0 * largest("f_dc_0 f_dc_1 f_dc_2"),
    )


def pose(cameras: Cameras, frame: tuple[float, ...]) -> dict[str, Any]:
    """The first of our cameras as viewers want it, in a world that is ours turned by a rotation (wxyz).

    position, target, up; fov: the full vertical angle of view in degrees.
    """
    turn = rotation_matrix(torch.tensor([frame], dtype=torch.float64))[0]
    _, down, forward, place = (turn @ cameras.c2w[0, :3, :].double()).unbind(-1)
    target = place + forward * cameras.radius[0]
    vectors = {"position": place, "target": target, "up": -down}
    return {name: vector.tolist() for name, vector in vectors.items()} | {"fov": float(cameras.fov_y_deg[0])}


def raster(file: Path, cameras: Cameras) -> Float[Tensor, "H W 3"]:
    """splat-transform's picture of a .ply, .spz or .splat over green, on the Vulkan device that Chromium brings."""
    browser, out = chromium(), file.with_suffix(file.suffix + ".webp")
    places = [Path("/usr/lib/chromium"), Path(browser).resolve().parent]
    device = next((place for place in places if (place / "vk_swiftshader_icd.json").exists()), None)
    if device is None:
        pytest.skip(f"{browser} brings no SwiftShader along; on Debian: apt-get install chromium")
    seen = pose(cameras, Y_UP)
    position, target, up = (",".join(f"{x:.9g}" for x in seen[name]) for name in ("position", "target", "up"))
    command = [program("splat-transform"), "-q", "-w", file, f"--camera={position}", f"--look-at={target}",
               f"--up={up}", "--fov", str(seen["fov"]), "--resolution", f"{cameras.width}x{cameras.height}",
               "--background", ",".join(map(str, GREEN)), out]  # fmt: skip
    environment = os.environ | {
        "VK_DRIVER_FILES": str(device / "vk_swiftshader_icd.json"),
        "LD_LIBRARY_PATH": str(device),
        "XDG_RUNTIME_DIR": str(file.parent),
    }
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=300)
    return _read(out)


@dataclass(frozen=True)
class Shot:
    """A viewer's picture of a file over green, and what its page told beside it."""

    picture: Float[Tensor, "H W 3"]
    told: dict[str, Any]


def shoot(files: Sequence[tuple[str, str, Path]], cameras: Cameras) -> list[Shot]:
    """Pictures of files, each as (page of validators/pages, format, path), seen by the first of the cameras.

    Raises CalledProcessError, with what the page said, where a viewer fails.
    """
    program("")
    jobs = [
        {
            "page": page,
            "file": str(path.resolve()),
            "camera": pose(cameras, FRAMES[name]),
            "size": cameras.height,
            "picture": str(path.resolve().with_name(f"{path.name}-{page}.png")),
        }
        for page, name, path in files
    ]
    command = ["node", str(FOLDER / "shoot.mjs"), chromium()]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, timeout=900)
    if done.returncode:
        print(done.stderr)
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    told = json.loads(done.stdout)
    return [Shot(_read(Path(job["picture"])), said or {}) for job, said in zip(jobs, told, strict=True)]


def _read(picture: Path) -> Float[Tensor, "H W 3"]:
    return torch.from_numpy(np.array(Image.open(picture).convert("RGB"))).float() / 255


@torch.no_grad()
def ours(rep: Representation, renderer: Renderer, cameras: Cameras) -> Float[Tensor, "H W 3"]:
    """Our own picture over green, from the first of the cameras."""
    return renderer(rep, cameras[:1], Background(torch.tensor([GREEN]))).rgb[0].clamp(0, 1)


def silhouette(picture: Float[Tensor, "H W 3"]) -> Bool[Tensor, "H W 1"]:
    """The pixels that differ from the background."""
    return (picture - picture.new_tensor(GREEN)).norm(dim=-1, keepdim=True) > MASK_DISTANCE


def likeness(theirs: Float[Tensor, "H W 3"], own: Float[Tensor, "H W 3"]) -> tuple[float, float]:
    """The overlap (IoU) of two silhouettes, and the PSNR in dB of the colours where one of them is."""
    a, b = silhouette(theirs), silhouette(own)
    return float(iou(a[None].float(), b[None].float())), psnr(theirs, own, a | b)


def accessors_that_differ(shot: Shot, path: Path) -> list[str]:
    """Of a glTF of Gaussians, the attributes that three.js reads otherwise than they stand in the file, bit by bit."""
    told, file = shot.told["accessors"], read_glb(path.read_bytes(), path.name)
    widths, attributes = {**glb_splat.WIDTHS, "COLOR_0": 4}, file.primitive["attributes"]
    differ = [name for name in told if bytes(told[name]) != file.column(attributes[name], widths[name]).tobytes()]
    return differ + [name for name in attributes if name not in told]
