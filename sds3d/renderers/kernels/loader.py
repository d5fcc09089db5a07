"""Finds or builds the library of all C kernels, once per process and only when something is to be drawn.

Order: the library that was built with the package, if this CPU can run it; else the machine's C compiler, into a folder
of the user's cache; else none, and the caller falls back to PyTorch. `SDS3D_KERNEL` chooses by hand: "c" fails where
there is no kernel, "torch" never looks for one.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
SOURCES = tuple(sorted(FOLDER.glob("*.c")))  # one library of them all
CHOICES = ("auto", "c", "torch")
# Not -ffast-math: linked into a library it changes the whole process's denormals, and it drops the guards against NaN.
FLAGS = (
    *("-O3", "-std=gnu11", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
)
TIMEOUT_S = 120.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """What draws, and why: name is "c", "torch", "gsplat" or "pytorch3d"; library is the loaded kernel of "c"."""

    name: str
    why: str
    library: ctypes.CDLL | None = None


def backend() -> Backend:
    """The backend for float32 on the CPU; builds the kernel at the first call.

    Raises ValueError for an unknown `SDS3D_KERNEL`, and RuntimeError where it asks for a kernel that cannot be had.
    """
    choice = os.environ.get("SDS3D_KERNEL") or "auto"
    if choice not in CHOICES:
        raise ValueError(f'SDS3D_KERNEL must be one of {", ".join(CHOICES)}, given "{choice}".')
    if choice == "torch":
        return Backend("torch", "SDS3D_KERNEL=torch asks for it")
    found = _find()
    if found.library is None and choice == "c":
        raise RuntimeError(f"SDS3D_KERNEL=c asks for the C kernel, but {found.why}.")
    return found


def backend_for(like: Tensor) -> Backend:
    """Of our own backends the one for the dtype and the device of `like`. The first call may compile the C kernels."""
    if like.device.type == "cpu" and like.dtype == torch.float32:
        return backend()
    return Backend("torch", f"it alone draws {like.dtype} on {like.device.type}")


@functools.cache
def _find() -> Backend:
    reasons = []
    for attempt in (_shipped, _compiled):
        try:
            library, how = attempt()
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            reasons.append(" ".join(str(error).split()))
            continue
        lanes = library.splats_lanes()
        log.info("The C kernels are %s.", how)
        return Backend("c", f"{how}, {lanes} lanes", library)
    why = "; ".join(reasons)
    log.warning(
        "There are no C kernels, so PyTorch draws: Gaussians some fifty times slower, fields ten times, "
        "meshes nearly twice: %s.",
        why,
    )
    return Backend("torch", why)


def source_hash() -> str:
    """Identifies the text of the kernels."""
    return hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()[:16]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _open(path: Path) -> ctypes.CDLL:
    """Load a library; RuntimeError where it is damaged or was built from another text.

    The digest beside it is compared first, because loading a library that was cut short ends the process.
    """
    digest = path.with_suffix(".sha256")
    if not digest.exists() or digest.read_text() != _digest(path):
        raise RuntimeError(f"{path.name} is damaged")
    library = ctypes.CDLL(str(path))
    library.splats_source.restype = ctypes.c_char_p
    if library.splats_source().decode() != source_hash():
        raise RuntimeError(f"{path.name} was built from another version of the kernel")
    for name in ("splats_shape_size", "splats_gradient_size", "splats_state_size"):
        getattr(library, name).restype = ctypes.c_int64
    return library


def cpu_flags() -> str:
    """What this CPU can do, as one line; only a name where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line.partition(":")[2].strip()
    return platform.processor()


def shipped_path() -> Path:
    """Where a package with built kernels keeps them."""
    return FOLDER / f"kernels-{platform.system().lower()}-{platform.machine().lower()}.so"


def _shipped() -> tuple[ctypes.CDLL, str]:
    path = shipped_path()
    if not path.exists():
        raise RuntimeError("the package holds no built kernel for this system")
    # The shipped library is built for AVX2 on x86; without it the first call would end the process.
    if platform.machine().lower() in ("x86_64", "amd64") and not {"avx2", "fma"} <= set(cpu_flags().split()):
        raise RuntimeError("this CPU has no AVX2, which the package's kernel needs")
    return _open(path), f"the package's own, {path}"


def _cache_folder() -> Path:
    """A folder of this user alone; a temporary one where the home is not writable."""
    root = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(root) if root else Path.home() / ".cache") / "sds3d" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="sds3d-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="sds3d-"))


def compiler() -> list[str]:
    """The C compiler's command: `CC`, else the first of cc, gcc, clang. Raises RuntimeError where there is none."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise RuntimeError("there is no C compiler (install gcc or clang)")


def compile_library(target: Path, march: str) -> None:
    """Compile the kernels for an architecture ("native", "x86-64-v3", "" for the compiler's default) into `target`.

    The file appears whole or not at all, and its digest after it. Raises RuntimeError with the compiler's first words
    where it fails.
    """
    command = [*compiler(), *FLAGS, f'-DSOURCE="{source_hash()}"', *([f"-march={march}"] if march else [])]
    handle, name = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, "-o", name, *map(str, SOURCES), "-lm"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} cannot compile the kernels: {done.stderr.strip()[:200]}")
        Path(name).with_suffix(".sha256").write_text(_digest(Path(name)))
        os.replace(name, target)
        os.replace(Path(name).with_suffix(".sha256"), target.with_suffix(".sha256"))
    finally:
        Path(name).unlink(missing_ok=True)


def _compiled() -> tuple[ctypes.CDLL, str]:
    parts = [source_hash(), *FLAGS, *compiler(), platform.machine(), cpu_flags()]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    path = _cache_folder() / f"kernels-{key}.so"
    if path.exists():
        try:
            return _open(path), f"compiled for this CPU, {path}"
        except (OSError, RuntimeError):
            log.warning("The cached kernel %s cannot be used; it is built anew.", path)
    log.info("Compiling the kernels with %s into %s.", compiler()[0], path)
    start = time.perf_counter()
    try:
        compile_library(path, "native")
    except RuntimeError:
        compile_library(path, "")  # some compilers do not know "native"
    seconds = time.perf_counter() - start
    log.info("Compiled the kernels in %.1f s.", seconds)
    return _open(path), f"compiled for this CPU in {seconds:.1f} s, {path}"


def build() -> Path:
    """Compile the library that a package ships, beside its source; AVX2 on x86."""
    march = "x86-64-v3" if platform.machine().lower() in ("x86_64", "amd64") else ""
    compile_library(shipped_path(), march)
    return shipped_path()


if __name__ == "__main__":
    print(build())
