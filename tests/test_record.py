"""The run folder: whole files, checkpoints that survive, one run at a time, errors in a sentence."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sds3d import record
from sds3d.files import explain, write
from sds3d.record import RunFolder, check_free, slug


@given(st.text(max_size=400))
def test_slugs_are_safe_names(prompt: str) -> None:
    name = slug(prompt)
    assert 1 <= len(name) <= 40
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not name.startswith("-")


def test_slugs_recall_the_prompt() -> None:
    assert slug("a red cube, on white") == "a-red-cube-on-white"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("Éléphant") == "elephant"
    assert slug("猫") != slug("狗")


def state(value: float) -> dict[str, torch.Tensor]:
    return {"rep/means": torch.full((50, 3), value), "rep/steps": torch.tensor(7)}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.new(tmp_path / "run")
    made.note(prompt="a", seed=0, recipe={}, status="running")
    return made


def test_a_checkpoint_comes_back(folder: RunFolder) -> None:
    assert folder.load() is None
    folder.save("shape", 3, state(1.0))
    folder.save("shape", 6, state(2.0))
    saved = folder.load()
    assert saved is not None
    assert (saved.stage, saved.index) == ("shape", 6)
    assert torch.equal(saved.tensors["rep/means"], state(2.0)["rep/means"])
    assert saved.tensors["rep/steps"].shape == ()


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "delete", "json", "json deleted"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(folder: RunFolder, damage: str) -> None:
    folder.save("shape", 3, state(1.0))
    folder.save("shape", 6, state(2.0))
    file = folder.path / "checkpoint" / ("latest.json" if damage.startswith("json") else "latest.safetensors")
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[:-1])
    elif damage == "flip":
        data[-5] ^= 1
        file.write_bytes(data)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "json":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.unlink()
    saved = folder.load()
    assert saved is not None
    assert saved.index == 3


def test_checkpoints_that_are_all_damaged_are_refused(folder: RunFolder) -> None:
    folder.save("shape", 3, state(1.0))
    (folder.path / "checkpoint" / "latest.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="--force"):
        folder.load()


def test_a_newer_checkpoint_is_refused(folder: RunFolder) -> None:
    folder.save("shape", 3, state(1.0))
    file = folder.path / "checkpoint" / "latest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 99}))
    with pytest.raises(ValueError, match="newer sds3d"):
        folder.load()


class Killed(BaseException):
    """Stands for a process that ends between two system calls."""


CALLS = ("open", "replace", "fsync", "unlink", "write")


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Let the number-th file operation of `os` fail."""
    count = [0]

    def wrap(function):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == number:
                raise error
            return function(*args, **kwargs)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_checkpoint_survives_a_failure_at_every_file_operation(tmp_path: Path, error: BaseException) -> None:
    """Fail the first operation, the second, ... until a save passes untouched: an old or the new state always loads."""
    number, passed, seen = 0, False, set()
    while not passed:
        number += 1
        made = RunFolder.new(tmp_path / str(number))
        made.note(prompt="a", seed=0, recipe={}, status="running")
        made.save("shape", 1, state(1.0))
        made.save("shape", 2, state(2.0))
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, number, error)
            try:
                made.save("shape", 3, state(3.0))
                passed = True
            except (Killed, OSError):
                pass
        made.close()
        again = RunFolder.resume(made.path)
        saved = again.load()
        assert saved is not None
        assert torch.equal(saved.tensors["rep/means"], state(float(saved.index))["rep/means"])
        assert saved.index >= 2
        assert not list(made.path.rglob(".*.partial*"))
        again.save("shape", 4, state(4.0))
        assert again.load().index == 4
        again.close()
        seen.add(saved.index)
    assert number > 8
    assert seen == {2, 3}


def test_a_file_is_whole_at_every_failure(tmp_path: Path) -> None:
    file, number, passed = tmp_path / "run.json", 0, False
    file.write_bytes(b"old")
    while not passed:
        number += 1
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, number, Killed())
            try:
                write(file, b"new")
                passed = True
            except Killed:
                pass
        assert file.read_bytes() in (b"old", b"new")
    assert file.read_bytes() == b"new"
    assert number > 3


def test_a_state_that_is_not_finite_is_not_saved(folder: RunFolder) -> None:
    folder.save("shape", 3, state(1.0))
    with pytest.raises(ArithmeticError, match="rep/means"):
        folder.save("shape", 6, state(float("nan")))
    assert folder.load().index == 3


def test_metrics_are_cut_back_to_the_checkpoint(folder: RunFolder) -> None:
    for i in range(3):
        folder.log({"step": i})
    folder.save("shape", 3, state(1.0))
    for i in range(3, 5):
        folder.log({"step": i})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "half')
    folder.load()
    assert [json.loads(line)["step"] for line in (folder.path / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_a_folder_belongs_to_one_run(folder: RunFolder) -> None:
    for begin in (lambda: RunFolder.resume(folder.path), lambda: RunFolder.new(folder.path, force=True)):
        with pytest.raises(ValueError, match="in use"):
            begin()
    assert (folder.path / "run.json").exists()
    folder.close()
    RunFolder.resume(folder.path).close()


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from sds3d.record import RunFolder; "
        f"f = RunFolder.new(pathlib.Path({str(tmp_path / 'run')!r})); "
        "f.note(prompt='a', seed=0, recipe={}, status='running'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    RunFolder.resume(tmp_path / "run").close()


def test_what_may_begin_where(tmp_path: Path) -> None:
    check_free(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    (tmp_path / "drafted").mkdir()
    (tmp_path / "drafted" / "draft.png").touch()
    check_free(tmp_path / "empty")
    check_free(tmp_path / "drafted")
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    for name in ("file", "other"):
        for force in (False, True):
            with pytest.raises(ValueError, match="choose another --out"):
                check_free(tmp_path / name, force)


def test_force_replaces_a_run_and_nothing_else(folder: RunFolder) -> None:
    folder.save("shape", 3, state(1.0))
    for name in ("asset.ply", "turntable.mp4", "metrics.jsonl", "notes.txt", ".asset.partial.ply"):
        (folder.path / name).write_text("x")
    folder.close()
    with pytest.raises(ValueError, match="--force"):
        RunFolder.new(folder.path)
    RunFolder.new(folder.path, force=True).close()
    assert [file.name for file in folder.path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", "\xff", "[" * 5000])
def test_a_manifest_that_cannot_be_read_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError):
        RunFolder.resume(tmp_path)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"), (errno.EROFS, "not allowed"), (errno.EIO, "nput")],
)
def test_failed_writes_are_told_in_a_sentence(number: int, words: str) -> None:
    sentence = explain(OSError(number, os.strerror(number), "/some/where"))
    assert words in sentence
    assert "/some/where" in sentence
    assert sentence.endswith(".")


def test_a_planted_link_is_not_followed(folder: RunFolder, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    (folder.path / ".run.partial.json").symlink_to(target)
    (folder.path / "run.json").unlink()
    (folder.path / "run.json").symlink_to(target)
    folder.note(status="done")
    assert target.read_text() == "kept"
    assert not (folder.path / "run.json").is_symlink()
    assert record.read_manifest(folder.path)["status"] == "done"
