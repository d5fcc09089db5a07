"""The run folder: one run at a time, files that are whole or absent, checkpoints that survive a kill at any moment.

    run.json        the manifest        metrics.jsonl   one object per logged step
    preview.png     the latest views    checkpoint/     latest, previous and the end of each stage but the last,
    asset.ply ...   what the recipe exports             each .safetensors and .json

Every file is whole or absent but metrics.jsonl, which grows line by line and is cut back to the checkpoint on resume.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .engine import Saved
from .files import sync_folder, write, write_new

CHECKPOINTS = ("latest", "previous")
END = "end-"  # and a stage's name: the checkpoint at its end
SCHEMA = 1  # of the checkpoint; a newer one is refused
KEPT = ("draft.png",)  # what may lie in a folder before its run begins
PARTIAL = re.compile(r"\..*\.partial.*")  # what a killed process leaves
OURS = re.compile(rf"(asset|turntable|explain)[.-].*|preview\.png|metrics\.jsonl|{PARTIAL.pattern}")


def slug(prompt: str) -> str:
    """A folder name of 1 to 40 of a-z, 0-9 and "-" that recalls the prompt."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-")
    return name or "prompt-" + hashlib.sha256(prompt.encode()).hexdigest()[:8]


class RunFolder:
    """A folder that belongs to this process until it ends; made by `new` or `resume`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = {}
        # The lock is on the folder itself: it leaves no file behind, and the kernel frees it however the process ends.
        self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ValueError(f"{path} is in use by another run; wait for it, or choose another --out.") from None

    def close(self) -> None:
        """Give the folder back."""
        os.close(self._lock)

    @classmethod
    def new(cls, path: Path, force: bool = False) -> RunFolder:
        """An empty folder for a new run. force: replace the run that it holds. Raises ValueError, OSError."""
        check_free(path, force)
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        folder._clear()
        return folder

    @classmethod
    def resume(cls, path: Path) -> RunFolder:
        """The folder of a run that has begun. Raises ValueError where there is none or it cannot be read."""
        read_manifest(path)
        folder = cls(path)
        folder.manifest = read_manifest(path)
        folder._sweep()
        return folder

    def _sweep(self) -> None:
        """Remove what killed processes left half-written."""
        for file in (*self.path.iterdir(), *self.path.glob("checkpoint/.*")):
            if PARTIAL.fullmatch(file.name):
                file.unlink()

    def _clear(self) -> None:
        """Remove an earlier run's files and nothing else; the manifest last, so that a kill leaves a run to replace."""
        for file in self.path.iterdir():
            if OURS.fullmatch(file.name):
                file.unlink()
        for file in self.path.glob("checkpoint/*"):
            if file.name.removeprefix(".").startswith((*(f"{name}." for name in CHECKPOINTS), END)):
                file.unlink()
        with contextlib.suppress(OSError):
            (self.path / "checkpoint").rmdir()
        (self.path / "run.json").unlink(missing_ok=True)

    def note(self, **entries: Any) -> None:
        """Change entries of the manifest and write it."""
        self.manifest |= entries
        write(self.path / "run.json", (json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n").encode())

    def save(self, stage: str, index: int, tensors: Mapping[str, Tensor], end: bool = False) -> None:
        """Write a checkpoint; the one before it is kept. Raises ArithmeticError for a number that is not finite.

        end: it is the end of its stage, of which a copy is kept for good.

        Both new files are on the disk before an old one moves. Between any two renames there is a pair of .json and
        .safetensors whose hashes agree, and `load` looks for that.
        """
        kept = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        for name, tensor in kept.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
                raise ArithmeticError(f'"{name}" is not finite; the checkpoint before it is kept.')
        data = safetensors.torch.save(kept)
        metrics = self.path / "metrics.jsonl"
        told = {
            "schema": SCHEMA,
            "stage": stage,
            "index": index,
            "sha256": hashlib.sha256(data).hexdigest(),
            "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
        }
        folder = self.path / "checkpoint"
        folder.mkdir(exist_ok=True)
        new = {"safetensors": data, "json": json.dumps(told).encode()}
        for suffix, content in new.items():
            (folder / f".latest.partial.{suffix}").unlink(missing_ok=True)
            write_new(folder / f".latest.partial.{suffix}", content)
        for suffix in new:
            if (folder / f"latest.{suffix}").exists():
                os.replace(folder / f"latest.{suffix}", folder / f"previous.{suffix}")
        sync_folder(folder)
        for suffix in new:
            os.replace(folder / f".latest.partial.{suffix}", folder / f"latest.{suffix}")
        sync_folder(folder)
        if end:
            for suffix, content in new.items():
                write(folder / f"{END}{stage}.{suffix}", content)

    def load(self) -> Saved | None:
        """The newest whole checkpoint, with the metrics cut back to it; None where none was written.

        Raises ValueError where checkpoints lie there and none is whole.
        """
        folder = self.path / "checkpoint"
        for told, data in _whole(folder, CHECKPOINTS):
            return self._return_to(told, data)
        if any((folder / f"{name}.safetensors").exists() for name in CHECKPOINTS):
            raise ValueError(f"No checkpoint in {folder} is whole; begin again with --force.")
        _cut(self.path / "metrics.jsonl", 0)
        return None

    def load_end(self, stages: Sequence[str]) -> Saved | None:
        """The end of the last of `stages` that was kept, or None; what was made after it is dropped."""
        folder = self.path / "checkpoint"
        for name in reversed(stages):
            for told, data in _whole(folder, (f"{END}{name}",)):
                saved = self._return_to(told, data)
                self.save(saved.stage, saved.index, saved.tensors)  # first as the latest, then as the one before too
                self.save(saved.stage, saved.index, saved.tensors)
                return saved
        for name in CHECKPOINTS:
            for suffix in ("json", "safetensors"):
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)
        _cut(self.path / "metrics.jsonl", 0)
        return None

    def _return_to(self, told: Mapping[str, Any], data: bytes) -> Saved:
        _cut(self.path / "metrics.jsonl", told["metrics_bytes"])
        return _saved(told, data)

    def log(self, entry: Mapping[str, object]) -> None:
        """Add a line to the metrics."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")


def check_free(path: Path, force: bool = False) -> None:
    """Raise ValueError where a new run may not begin; changes nothing."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; choose another --out.")
    if not path.is_dir() or not [entry for entry in path.iterdir() if entry.name not in KEPT]:
        return
    if not (path / "run.json").exists():
        raise ValueError(f"{path} holds other files and no run; choose another --out.")
    if not force:
        raise ValueError(
            f"{path} already holds a run; go on with --resume, replace it with --force, or choose another --out."
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the run in a folder. Raises ValueError."""
    file = path / "run.json"
    if not file.is_file():
        raise ValueError(f"{path} holds no run to resume; leave out --resume to begin one.")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{file} is damaged and cannot be read; begin again with --force.") from None
    wanted = {"prompt": str, "seed": int, "recipe": dict, "status": str}
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(key), kind) for key, kind in wanted.items()):
        raise ValueError(f"{file} is not the manifest of a run; choose another folder.")
    return manifest


def checkpoints(path: Path) -> list[Saved]:
    """Where the run in a folder can be taken up: its whole checkpoints, the newest first, then the ends of stages."""
    ends = sorted(file.stem for file in (path / "checkpoint").glob(f"{END}*.json"))
    found = [*_whole(path / "checkpoint", CHECKPOINTS)]
    found += [pair for name in ends for pair in _whole(path / "checkpoint", (name,))]
    return [_saved(told, data) for told, data in found]


def _whole(folder: Path, names: Sequence[str]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """What each named checkpoint says of itself and its tensors' bytes, where the hashes agree, in order."""
    for told_by in names:
        told = _read_told(folder / f"{told_by}.json")
        for name in names:
            file = folder / f"{name}.safetensors"
            if told is None or not file.exists():
                continue
            data = file.read_bytes()
            if hashlib.sha256(data).hexdigest() == told["sha256"]:
                yield told, data
                break


def _saved(told: Mapping[str, Any], data: bytes) -> Saved:
    return Saved(told["stage"], told["index"], safetensors.torch.load(data))


def _read_told(file: Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself, or None where it is absent or not readable."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(told, dict) or not {"sha256", "stage", "index", "metrics_bytes"} <= told.keys():
        return None
    if told.get("schema", 0) > SCHEMA:
        raise ValueError(f"{file} was written by a newer sds3d; update sds3d to resume this run.")
    return told


def _cut(metrics: Path, size: int) -> None:
    """Keep the first `size` bytes of the metrics, up to the last whole line."""
    if not metrics.exists():
        return
    kept = metrics.read_bytes()[:size]
    write(metrics, kept[: kept.rfind(b"\n") + 1])
