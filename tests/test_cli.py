"""The command line: what it prints where, its exit codes, and that bad input costs one sentence and nothing else."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import prior

from sds3d import __version__, schema
from sds3d.cli import cli
from sds3d.generate import Request, plan
from sds3d.plugins import KINDS

DRIVER = """
import sys
sys.path.insert(0, {tests!r})
import torch
from small_run import prior
import sds3d.priors.catalogue as catalogue
catalogue.open_prior = lambda name, device: prior(4, ("cube", "cone"))
from sds3d.cli import main
main()
"""
SMALL = (
    "--set", "stages.shape.cameras.size=16",
    "--set", "stages.shape.start.count=40",
    "--set", "stages.shape.optimise.max_count=60",
    "--set", "exports=[ply]",
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every prior is the analytic one, and the working folder is empty."""
    monkeypatch.setattr("sds3d.priors.catalogue.open_prior", lambda name, device: prior(4, ("cube", "cone")))
    monkeypatch.chdir(tmp_path)


def sds3d(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def generate(*arguments: str) -> Result:
    return sds3d("generate", *arguments, "--steps", "12", *SMALL)


def test_generate_prints_its_files_and_fills_the_folder() -> None:
    done = generate("a cube")
    assert done.exit_code == 0, done.output
    assert done.stdout == "runs/a-cube-s0/asset.ply\n"
    folder = Path("runs/a-cube-s0")
    names = {file.name for file in folder.iterdir()}
    assert names == {"run.json", "metrics.jsonl", "preview.png", "checkpoint", "asset.ply"}
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["sds3d"] == __version__
    assert manifest["prompt"] == "a cube"
    assert manifest["seed"] == 0
    assert {"kernel", "threads", "device", "torch", "packages", "capability"} <= manifest["machine"].keys()
    assert manifest["recipe"]["stages"]["shape"]["steps"] == 12
    assert manifest["timings_s"]["run"] > 0
    assert manifest["peak_memory_mb"] > 50
    assert str(Path.home()) not in (folder / "asset.ply").read_bytes().decode("latin-1")
    assert (folder / "preview.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_one_object_on_standard_output() -> None:
    done = generate("a cube", "--json", "--out", "here")
    told = json.loads(done.stdout)
    assert told["status"] == "done"
    assert told["assets"] == {"ply": "here/asset.ply"}
    assert told["folder"] == "here"


def test_quiet_says_nothing_else() -> None:
    assert generate("a cube", "--quiet").stderr == ""
    assert "shape 12/12" in generate("a cone").stderr


def test_same_seed_same_bytes() -> None:
    for out, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert generate("a cube", "--out", out, "--seed", seed).exit_code == 0
    first, second, third = (Path(out, "asset.ply").read_bytes() for out in "abc")
    assert first == second
    assert first[first.index(b"end_header") :] != third[third.index(b"end_header") :]


def test_dry_run_prints_the_resolved_recipe_and_makes_nothing() -> None:
    done = generate("a cube", "--dry-run")
    told = json.loads(done.stdout)
    assert done.exit_code == 0
    assert told["recipe"]["stages"]["shape"]["cameras"]["size"] == 16
    assert not list(Path().iterdir())


def test_draft_draws_the_priors_views_and_a_run_may_follow() -> None:
    done = generate("a cube", "--draft")
    assert done.stdout == "runs/a-cube-s0/draft.png\n"
    assert [file.name for file in Path("runs/a-cube-s0").iterdir()] == ["draft.png"]
    assert generate("a cube").exit_code == 0
    assert Path("runs/a-cube-s0/draft.png").exists()


def test_a_negative_prompt_becomes_the_base() -> None:
    assert generate("a cube", "--negative", "cone").exit_code == 0
    manifest = json.loads(Path("runs/a-cube-s0/run.json").read_text())
    assert manifest["negative"] == "cone"
    assert manifest["recipe"]["stages"]["shape"]["guidance"]["sds"]["mix"]["base"] == "negative"


def test_guidance_by_name_and_by_file_replaces_the_terms() -> None:
    Path("mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from sds3d.guidance.sds import Sds\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Sds):\n"
        "    extra: float = 1.0\n"
    )
    assert generate("a cube", "--guidance", "sds", "--out", "a").exit_code == 0
    one = generate("a cube", "--guidance", "mine.py:Mine", "--set", "stages.shape.guidance.main.extra=2", "--out", "b")
    assert one.exit_code == 0, one.output
    manifest = json.loads(Path("b/run.json").read_text())
    assert list(manifest["recipe"]["stages"]["shape"]["guidance"]) == ["main"]
    assert manifest["recipe"]["stages"]["shape"]["guidance"]["main"]["extra"] == 2.0
    assert list(manifest["guidance_files"]) == ["mine.py:Mine"]
    manifest["status"] = "interrupted"
    Path("b/run.json").write_text(json.dumps(manifest))
    assert "--guidance mine.py:Mine" in sds3d("generate", "--resume", "--out", "b").stderr
    assert sds3d("generate", "--resume", "--out", "b", "--guidance", "mine.py:Mine").exit_code == 0


def test_steps_are_shared_in_proportion() -> None:
    from sds3d.generate import Request, plan

    data = schema.to_data(plan(Request("a cube")).recipe)
    shape = data["stages"]["shape"]
    data["stages"] = {"one": {**shape, "steps": 100}, "two": {**shape, "steps": 50, "start": {"kind": "continue"}}}
    Path("two.yaml").write_text(json.dumps(data))
    for steps in (0, 1, 30, 31, 32):
        stages = plan(Request("a cube", recipe="two.yaml", steps=steps)).recipe.stages
        assert sum(stage.steps for stage in stages.values()) == steps
    assert [stage.steps for stage in plan(Request("a cube", recipe="two.yaml", steps=30)).recipe.stages.values()] == [
        20,
        10,
    ]


BAD = {
    "no prompt": ([], "A prompt is missing"),
    "empty prompt": ([""], "The prompt is empty"),
    "blank prompt": ([" \t\n"], "The prompt is empty"),
    "escape": (["\x1b[2Ja cube"], "control character"),
    "long prompt": (["cube " * 1000], "at most 2000"),
    "unknown word": (["a teapot"], "teapot"),
    "recipe": (["a cube", "--recipe", "gausians"], 'Did you mean "gaussians"?'),
    "recipe file": (["a cube", "--recipe", "none.yaml"], "no such recipe file"),
    "key": (["a cube", "--set", "stages.shape.stepz=3"], 'Did you mean "steps"?'),
    "type": (["a cube", "--set", "stages.shape.start.count=many"], 'must be a whole number, given "many"'),
    "range": (["a cube", "--set", "stages.shape.start.radius=3"], "radius must lie in"),
    "no value": (["a cube", "--set", "stages.shape"], "path.to.key=value"),
    "steps": (["a cube", "--steps", "some"], 'must be a whole number, given "some"'),
    "negative steps": (["a cube", "--steps", "-3"], "steps must be at least 0"),
    "guidance": (["a cube", "--guidance", "sdss"], 'Did you mean "sds"?'),
    "guidance file": (["a cube", "--guidance", "none.py:A"], "no file none.py"),
    "device": (["a cube", "--device", "abacus"], "abacus"),
    "no gpu": (["a cube", "--device", "cuda:99"], "cuda:99"),
    "views": (
        ["a cube", "--set", "stages.shape.cameras={kind: orbit, views: 2, group: 2}"],
        "denoises 4 views jointly",
    ),
    "export": (["a cube", "--set", "exports=[stml]"], "stml"),
    "nothing to resume": (["a cube", "--resume"], "holds no run to resume"),
    "resume what": (["--resume"], "needs the prompt or the folder"),
    "resume with changes": (["a cube", "--resume", "--steps", "3"], "leave out --steps"),
    "a file for a folder": (["a cube", "--out", "file"], "is a file"),
    "a folder of others": (["a cube", "--out", "other"], "holds other files"),
    "force on others": (["a cube", "--out", "other", "--force"], "holds other files"),
    "below a file": (["a cube", "--out", "file/below"], "file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_a_sentence(name: str) -> None:
    Path("file").write_text("precious")
    Path("other").mkdir()
    Path("other/thesis.tex").write_text("precious")
    arguments, sentence = BAD[name]
    done = sds3d("generate", *arguments)
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.stderr)
    assert Path("file").read_text() == Path("other/thesis.tex").read_text() == "precious"
    assert {str(path) for path in Path().rglob("*")} == {"file", "other", "other/thesis.tex"}


def test_unknown_options_and_commands_have_a_hint() -> None:
    assert "--seed" in sds3d("generate", "a cube", "--sede", "3").stderr
    assert sds3d("generate", "a cube", "--seed", "-1").exit_code == 2
    assert sds3d("generat").exit_code == 2


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in sds3d("generate", "", "--debug").stderr


def test_an_existing_run_is_kept_until_forced() -> None:
    assert generate("a cube").exit_code == 0
    before = Path("runs/a-cube-s0/asset.ply").read_bytes()
    again = generate("a cube", "--set", "stages.shape.cameras.fov_y_deg=30")
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    assert "--force" in again.stderr
    assert Path("runs/a-cube-s0/asset.ply").read_bytes() == before
    assert generate("a cube", "--force", "--set", "stages.shape.cameras.fov_y_deg=30").exit_code == 0
    assert Path("runs/a-cube-s0/asset.ply").read_bytes() != before


def test_resume_belongs_to_its_prompt_and_seed() -> None:
    assert generate("a cube", "--out", "here").exit_code == 0
    assert 'run of "a cube"' in sds3d("generate", "a cone", "--resume", "--out", "here").stderr
    assert "with seed 0" in sds3d("generate", "a cube", "--seed", "4", "--resume", "--out", "here").stderr
    before = Path("here/asset.ply").read_bytes()
    assert sds3d("generate", "--resume", "--out", "here").stdout == "here/asset.ply\n"
    assert Path("here/asset.ply").read_bytes() == before


def test_a_failed_run_keeps_its_checkpoint_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "asset.ply")

    with monkeypatch.context() as patch:
        patch.setattr("sds3d.export.write", full)
        done = generate("a cube")
    assert done.exit_code == 1
    assert "disk is full" in done.stderr
    assert "Traceback" not in done.output
    folder = Path("runs/a-cube-s0")
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert not (folder / "asset.ply").exists()
    assert sds3d("generate", "a cube", "--resume").exit_code == 0
    assert (folder / "asset.ply").exists()


def test_a_read_only_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", "runs")

    monkeypatch.setattr(Path, "mkdir", read_only)
    done = generate("a cube")
    assert done.exit_code == 2
    assert "not allowed" in done.stderr


def test_a_folder_in_use_is_refused() -> None:
    from sds3d.record import RunFolder

    assert generate("a cube", "--out", "here").exit_code == 0
    held = RunFolder.resume(Path("here"))
    for option in ("--force", "--resume"):
        arguments = ("generate", "a cube", "--out", "here", option)
        assert sds3d(*arguments).exit_code == 2
        assert "in use" in sds3d(*arguments).stderr
    held.close()


def start(folder: Path, *arguments: str, before: str = "") -> subprocess.Popen:
    """The command in a process of its own, which first runs the code `before`."""
    driver = folder / "driver.py"
    driver.write_text(before + DRIVER.format(tests=str(Path(__file__).parent)))
    return subprocess.Popen(
        [sys.executable, str(driver), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_says_how_to_go_on_and_loses_no_bits(number: int, tmp_path: Path) -> None:
    common = ("generate", "a cube", "--steps", "150", *SMALL)
    process = start(tmp_path, *common, "--out", "cut")
    wait_for(tmp_path / "cut" / "metrics.jsonl", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "sds3d generate --resume --out cut" in errors
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "interrupted"
    assert start(tmp_path, "generate", "--resume", "--out", "cut").wait(60) == 0
    assert start(tmp_path, *common, "--out", "whole").wait(60) == 0
    assert (tmp_path / "cut" / "asset.ply").read_bytes() == (tmp_path / "whole" / "asset.ply").read_bytes()


def test_a_second_interrupt_leaves_at_once_and_harms_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, "generate", "a cube", "--steps", "100000", *SMALL, "--out", "cut")
    wait_for(tmp_path / "cut" / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130
    resumed = start(tmp_path, "generate", "--resume", "--out", "cut")
    assert "Going on from" in resumed.stderr.readline()
    resumed.send_signal(signal.SIGINT)
    assert resumed.wait(60) == 130


@pytest.mark.parametrize("delay", [0.3, 0.7, 1.5])
def test_an_interrupt_before_the_run_leaves_nothing(delay: float, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sds3d", "generate", "a red cube", "--prior", str(tmp_path / "none")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    # A fast machine may have found by then that the prior is missing.
    assert process.returncode in (2, 130)
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_the_run_and_keeps_what_was_there(tmp_path: Path) -> None:
    """No file may grow beyond 12 kB, so the first checkpoint fails as on a full disk."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000))\n"
    process = start(tmp_path, "generate", "a cube", "--steps", "6", *SMALL, "--out", "full", before=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "disk is full" in errors
    assert "Traceback" not in errors
    folder = tmp_path / "full"
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert not (folder / "asset.ply").exists()
    assert start(tmp_path, "generate", "--resume", "--out", "full").wait(60) == 0
    assert not list(folder.rglob(".*"))


TEXTS = st.text(max_size=30) | st.sampled_from(
    [
        "",
        " ",
        "nan",
        "inf",
        "1e400",
        "-1",
        "0x10",
        "٣",
        "../x",
        "/etc/passwd",
        "-rf",
        "$(id)",
        "{p: 1}",
        "a: b",
        "&a [*a]",
    ]
)


@given(
    prompt=TEXTS,
    recipe=st.none() | TEXTS,
    prior=st.none() | TEXTS,
    guidance=st.none() | TEXTS,
    negative=st.none() | TEXTS,
    device=st.none() | TEXTS,
    overrides=st.lists(TEXTS | TEXTS.map(lambda value: f"stages.shape.steps={value}"), max_size=2),
)
@settings(max_examples=200, deadline=None)
def test_any_request_is_planned_or_refused(**given: Any) -> None:
    with contextlib.suppress(ValueError, OSError):
        plan(Request(**{**given, "overrides": tuple(given["overrides"])}))


def wait_for(file: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not file.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    assert file.exists(), process.communicate()[1] if process.poll() is not None else "too slow"


def test_list_names_what_there_is() -> None:
    everything = sds3d("list").stdout
    for title in ("recipes", "priors", "exports", *KINDS):
        assert re.search(rf"^{title}$", everything, re.MULTILINE)
    assert "snowman" in sds3d("list", "words").stdout
    assert "snowman" not in everything
    assert "gaussians" in sds3d("list", "recipes").stdout
    refused = sds3d("list", "recipe")
    assert refused.exit_code == 2
    assert 'Did you mean "recipes"?' in refused.stderr


def test_doctor_tells_what_draws_and_why() -> None:
    done = sds3d("doctor")
    assert done.exit_code == 0, done.output
    assert re.search(r"^splats +(c|torch): .+", done.stdout, re.MULTILINE)
    assert "prior playroom" in done.stdout
    assert "torch" in done.stdout


def test_help_teaches_by_examples() -> None:
    for command in ((), ("generate",), ("list",), ("bench",)):
        assert "sds3d " + " ".join(command) in sds3d(*command, "--help").stdout
    assert sds3d("--version").stdout.strip().endswith(__version__)


def test_an_unknown_bench_is_refused() -> None:
    done = sds3d("bench", "priors")
    assert done.exit_code == 2
    assert 'Did you mean "prior"?' in done.stderr
