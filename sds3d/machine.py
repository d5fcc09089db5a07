"""What this machine is and can do: for the manifest of a run, and for `sds3d doctor`."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = (
    *("torch", "numpy", "safetensors", "diffusers", "transformers"),
    *("gsplat", "pytorch3d", "av", "imageio", "pillow"),
)
# What decides the last bits of a run; where one of these has changed, a resumed run ends in other bytes.
DECIDING = ("device", "kernel", "threads", "capability", "torch")
EXTRAS = {
    "gsplat": "draws Gaussians on a GPU: pip install 'sds3d[cuda]'",
    "av": "writes .mp4 turntables (else .webp): pip install 'sds3d[video]'",
    "diffusers": "runs diffusion priors: pip install diffusers",
}


def choose_device(name: str | None) -> torch.device:
    """A device by name; None or "auto" takes a GPU where there is one. Raises ValueError for one that is not there."""
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
    except RuntimeError:
        raise ValueError(f'There is no device "{name}"; use cpu, cuda or cuda:0.') from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'The device "{name}" is not here: PyTorch sees {torch.cuda.device_count()} GPUs. Use cpu.')
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f'The device "{name}" is not supported; use cpu, cuda or cuda:0.')
    return device


def packages() -> dict[str, str]:
    """The versions of the packages that matter and are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def facts(device: torch.device) -> dict[str, Any]:
    """What a manifest says of the machine."""
    from .renderers.splats import backend

    kernel = backend(torch.empty(0, device=device))
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "kernel": kernel.name,
        "kernel_why": kernel.why,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
    }


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed since a run began that decides its last bits, in words."""
    told = [f"{name} {then.get(name)} -> {now.get(name)}" for name in DECIDING if then.get(name) != now.get(name)]
    if str(now.get("device", "")).startswith("cuda"):
        told.append("a GPU adds in no fixed order")
    return told


def peak_memory_mb() -> float:
    """The most memory that this process has held, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)


def report() -> list[tuple[str, str]]:
    """What `sds3d doctor` prints: a name and a sentence for each thing that matters."""
    from . import __version__
    from .priors.catalogue import CATALOGUE
    from .renderers import kernels, raster, splats

    device = choose_device("auto")
    known, like = facts(device), torch.empty(0, device=device)
    drawing = {"splats": splats.backend(like), "volume": kernels.backend_for(like), "raster": raster.backend(like)}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines = [
        ("sds3d", f"{__version__}, Python {known['python']}, torch {known['torch']}"),
        ("processor", f"{known['cores']} cores, {known['threads']} threads used, {known['capability']}"),
        ("GPU", ", ".join(gpus) or "none that PyTorch can use; runs draw on the processor"),
        *((name, f"{chosen.name}: {chosen.why}") for name, chosen in drawing.items()),
    ]
    for name, entry in CATALOGUE.items():
        lines.append((f"prior {name}", f"{entry.about} ({entry.licence}): {_presence(name)}"))
    for name, use in EXTRAS.items():
        if importlib.util.find_spec(name) is None:
            lines.append((f"missing {name}", use))
    return lines


def _presence(name: str) -> str:
    from .priors.catalogue import CATALOGUE, cached

    place = CATALOGUE[name].place
    try:
        folder = cached(place) if isinstance(place, str) else place
    except (FileNotFoundError, ValueError) as error:
        return f"not here. {error}"
    return "ready" if (folder / "model_index.json").is_file() else f"not here: {folder} holds no model"
