"""Kill a run at any moment, go on, and end in the same bytes.

A run of 60 steps saves at every step. Its processes are forked from a small server that has imported everything, so a
kill costs a fraction of a second. Half of the kills are aimed into a write, which is slowed down for the purpose.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small_run import priors, recipe

from sds3d import files, record
from sds3d.generate import Job, begin, make
from sds3d.prompts import Prompts
from sds3d.record import RunFolder

KILLS, IN_WRITE, STEPS = 20, 10, 60
CHUNK = 4096


def job(path: Path, resume: bool) -> Job:
    return Job(Prompts("red"), recipe(STEPS), 0, path, torch.device("cpu"), resume)


def work(path: Path, resume: bool, inside: object = None, steps: object = None) -> None:
    """One process of a run. With `inside` each step saves, in slow small pieces, during which it is 1."""
    torch.set_num_threads(1)
    if inside is not None:

        def slow(target: Path, data: bytes) -> None:
            inside.value = 1
            with target.open("xb", buffering=0) as file:
                for start in range(0, len(data), CHUNK):
                    file.write(data[start : start + CHUNK])
                    time.sleep(0.001)
                os.fsync(file.fileno())
            inside.value = 0

        files.write_new = record.write_new = slow

    def count(step, *_) -> None:
        if steps is not None:
            steps.value = step.index + 1

    one = job(path, resume)
    folder = begin(one)
    make(one, priors(), folder, (count,), checkpoint_s=10.0 if inside is None else 0.0)


@pytest.fixture(scope="module")
def context() -> Iterator[multiprocessing.context.ForkServerContext]:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["small_run", "sds3d.generate", "sds3d.export.ply"])
    os.environ["OMP_NUM_THREADS"], before = "1", os.environ.get("OMP_NUM_THREADS")
    yield server
    os.environ.pop("OMP_NUM_THREADS")
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a kill loses no page of either, and syncing a disk is slow."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def finish(context, path: Path, resume: bool) -> None:
    process = context.Process(target=work, args=(path, resume))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def digest(path: Path) -> str:
    return hashlib.sha256((path / "asset.ply").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(context, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    finish(context, path, resume=False)
    return path


def kill_once(context, path: Path, in_write: bool, draw: random.Random) -> bool:
    """Begin a run, kill it after its first checkpoint; returns whether it was inside a write."""
    inside, steps = context.Value("b", 0, lock=False), context.Value("i", 0, lock=False)
    process = context.Process(target=work, args=(path, False, inside, steps))
    process.start()
    target = draw.randrange(1, STEPS - 2)
    while process.is_alive() and steps.value < target:
        time.sleep(0.0005)
    while process.is_alive() and in_write and not inside.value:
        time.sleep(0.0001)
    time.sleep(draw.uniform(0, 0.004 if in_write else 0.02))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
    return bool(inside.value)


def check_metrics(path: Path) -> None:
    logged = [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert logged == [*range(0, STEPS, 10), STEPS - 1]


@pytest.mark.slow
def test_killed_at_random_moments_the_asset_has_the_same_bytes(context, undisturbed: Path, place: Path) -> None:
    draw, in_write = random.Random(0), 0
    for number in range(KILLS):
        path = place / str(number)
        in_write += kill_once(context, path, number < IN_WRITE, draw)
        saved = json.loads((path / "run.json").read_text())
        assert saved["status"] == "running"
        assert not (path / "asset.ply").exists()
        finish(context, path, resume=True)
        assert digest(path) == digest(undisturbed), f"kill {number}"
        manifest = json.loads((path / "run.json").read_text())
        assert manifest["status"] == "done"
        assert manifest["resumed"][0]["exact"] is True
        assert manifest["resumed"][0]["index"] >= 1
        check_metrics(path)
        assert not list(path.rglob(".*"))
    assert in_write >= 5


def test_killed_once_in_a_write_the_asset_has_the_same_bytes(context, undisturbed: Path, place: Path) -> None:
    kill_once(context, place / "run", True, random.Random(1))
    finish(context, place / "run", resume=True)
    assert digest(place / "run") == digest(undisturbed)
    check_metrics(undisturbed)


def interrupted(path: Path, at: int) -> Path:
    """A run that was stopped before step `at`, in this process."""
    reached = []
    one = job(path, False)
    folder = begin(one)
    made = make(one, priors(), folder, (lambda step, *_: reached.append(step),), stop=lambda: len(reached) == at)
    folder.close()
    assert not made.done
    assert made.index == at
    return path


@pytest.mark.parametrize("lost", [None, "first.", "second.", "steps", "events", "grow.gradient", "grow.seen"])
def test_the_checkpoint_holds_all_that_matters(context, undisturbed: Path, tmp_path: Path, lost: str | None) -> None:
    """The control: with the optimiser's moments, its step count or the growth statistics changed the bytes differ."""
    path = interrupted(tmp_path / "run", 33)  # between the second and the third moment of growth
    folder = RunFolder.resume(path)
    saved = folder.load()
    tensors = {name: tensor.clone() for name, tensor in saved.tensors.items()}
    chosen = [name for name in tensors if lost is not None and name.startswith(f"rep/{lost}")]
    for name in chosen:
        tensors[name] = torch.arange(len(tensors[name])).float() if "seen" in name else torch.zeros_like(tensors[name])
    folder.save(saved.stage, saved.index, tensors)
    folder.close()
    finish(context, path, resume=True)
    assert bool(chosen) == (lost is not None)
    assert (digest(path) == digest(undisturbed)) == (lost is None)


def test_a_damaged_checkpoint_costs_time_and_no_bits(context, undisturbed: Path, tmp_path: Path) -> None:
    path = interrupted(tmp_path / "run", 20)
    folder = RunFolder.resume(path)
    saved = folder.load()
    folder.save(saved.stage, saved.index, saved.tensors)
    folder.close()
    latest = path / "checkpoint" / "latest.safetensors"
    latest.write_bytes(latest.read_bytes()[:-100])
    finish(context, path, resume=True)
    assert digest(path) == digest(undisturbed)


def test_a_run_stopped_before_its_first_checkpoint_begins_again(context, undisturbed: Path, tmp_path: Path) -> None:
    path = interrupted(tmp_path / "run", 20)
    shutil.rmtree(path / "checkpoint")
    finish(context, path, resume=True)
    assert digest(path) == digest(undisturbed)
    check_metrics(path)


def test_the_manifest_says_when_the_bytes_may_differ(tmp_path: Path) -> None:
    path = interrupted(tmp_path / "run", 5)
    manifest = json.loads((path / "run.json").read_text())
    manifest["machine"] |= {"kernel": "another", "torch": "0.1"}
    (path / "run.json").write_text(json.dumps(manifest))
    said: list[str] = []
    one = job(path, True)
    folder = begin(one)
    make(one, priors(), folder, say=said.append)
    folder.close()
    resumed = json.loads((path / "run.json").read_text())["resumed"][0]
    assert resumed["exact"] is False
    assert len(resumed["changed"]) == 2
    assert "will not be the undisturbed run's" in said[1]
    assert "torch 0.1 ->" in said[1]


def test_a_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    path = interrupted(tmp_path / "run", 5)
    folder = RunFolder.resume(path)
    folder.save("nowhere", 5, folder.load().tensors)
    with pytest.raises(ValueError, match="nowhere"):
        make(job(path, True), priors(), folder)
    folder.close()


def test_checkpoints_can_be_read_by_others(tmp_path: Path) -> None:
    path = interrupted(tmp_path / "run", 5)
    tensors = safetensors.torch.load_file(path / "checkpoint" / "latest.safetensors")
    assert {"rep/means", "rep/first.means", "rep/second.means", "rep/steps"} <= tensors.keys()
