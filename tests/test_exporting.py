"""`sds3d export`: the asset of a run folder in other formats, checked, placed, and refused in one sentence."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from small_run import prior, priors, recipe, two_stages

from sds3d.cli import cli
from sds3d.engine import Outcome, Recipe, run, tensors
from sds3d.export import read
from sds3d.export import video as turntable_video
from sds3d.export.placement import bounds
from sds3d.exporting import RunAsset, open_run, provenance, rebuild
from sds3d.meshing import Meshed
from sds3d.prompts import Prompts
from sds3d.record import RunFolder
from sds3d.representations.gaussians import Gaussians
from sds3d.representations.mesh import Mesh

SMALL = ("--set", "stages.shape.cameras.size=16", "--set", "stages.shape.start.count=40",
         "--set", "stages.shape.optimise.max_count=60", "--set", "exports=[ply]")  # fmt: skip


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every prior is the analytic one, films are short, and the working folder is empty."""
    monkeypatch.setattr("sds3d.priors.catalogue.open_prior", lambda name, device: prior(4, ("cube", "cone")))
    monkeypatch.setattr(turntable_video, "FRAMES", 4)
    monkeypatch.setattr("sds3d.exporting.Meshed", partial(Meshed, resolution=32, triangles=1500))
    monkeypatch.setattr("sds3d.exporting.MESHED_FIT", 80)
    monkeypatch.chdir(tmp_path)


def sds3d(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture
def folder(small_world: None) -> Path:
    """The folder of a finished run."""
    done = sds3d("generate", "a cube", "--steps", "8", "--out", "here", "--quiet", *SMALL)
    assert done.exit_code == 0, done.output
    return Path("here")


def test_it_writes_beside_the_others_and_says_how_near(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.glob("*.ply")}
    done = sds3d("export", "here", "--to", "spz, splat,glb-splat,spz")
    assert done.exit_code == 0, done.output
    assert done.stdout == "here/asset.spz\nhere/asset.splat\nhere/asset.splat.glb\n"
    told = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in told] == ["asset.spz", "asset.splat", "asset.splat.glb"]
    assert all("dB (at least 3" in line or "no difference" in line for line in told)
    assert {name: (folder / name).read_bytes() for name in before} == before
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["assets"] == {"ply": "asset.ply", "spz": "asset.spz", "splat": "asset.splat",
                                  "glb-splat": "asset.splat.glb"}  # fmt: skip
    assert manifest["status"] == "done"


def test_the_ply_that_generate_wrote_comes_out_again(folder: Path) -> None:
    written = (folder / "asset.ply").read_bytes()
    assert sds3d("export", "here", "--to", "ply", "--out", "there").stdout == "there/asset.ply\n"
    assert Path("there/asset.ply").read_bytes() == written
    assert b"comment prompt a cube\n" in written
    assert b"comment seed 0\n" in written
    assert b"comment recipe " in written
    assert b"comment priors playroom (" in written


def ball(folder: Path) -> None:
    """The run's checkpoint holds a solid red ball instead."""
    count = 1500
    draws = torch.nn.functional.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1)
    colours = torch.tensor([[3.0, -3, -3]]).repeat(count, 1)
    rep = Gaussians(0.57 * draws, torch.full((count, 3), -2.8), quats, torch.full((count,), 5.0), colours)
    run_folder = RunFolder.resume(folder)
    run_folder.save("shape", 8, tensors(rep, ()))
    run_folder.close()


def test_gaussians_become_a_mesh_where_a_format_of_meshes_is_asked(folder: Path) -> None:
    ball(folder)
    done = sds3d("export", "here", "--to", "spz,glb,stl")
    assert done.exit_code == 0, done.output
    assert done.stdout == "here/asset.spz\nhere/asset.glb\nhere/asset.stl\n"
    told = [line for line in done.stderr.splitlines() if "mesh" in line]
    assert len(told) == 2, "a mesh is made once"
    assert re.search(
        r"at \d\d\.\d dB of the asset in the run's own views \(at least 22 dB\) with their fuzzy edges cut", told[1]
    )
    mesh = read(folder / "asset.glb")
    assert isinstance(mesh, Mesh)
    assert 0.6 < mesh.vertices.norm(dim=-1).mean() < 0.8
    assert (mesh.rgb.mean(dim=0).argmax() == 0).all()


def test_a_run_that_ends_in_a_mesh_says_how_near_it_is(small_world: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sds3d.exporting.MESHED_DB", 0.0)
    monkeypatch.setattr("sds3d.exporting.FUZZY_DB", 0.0)
    solid = ("--set", "stages.shape.optimise.opacities=2", "--set", "stages.shape.start.radius=0.2")
    settings = ("--steps", "8", "--out", "there", *SMALL, *solid, "--set", "exports=[glb]")
    done = sds3d("generate", "a cube", *settings)
    assert done.exit_code == 0, done.output
    assert "The mesh is at " in done.stderr and "asset.glb: read back" in done.stderr
    assert done.stdout == "there/asset.glb\n"


def test_what_is_nowhere_solid_becomes_no_mesh(folder: Path) -> None:
    done = sds3d("export", "here", "--to", "glb")
    assert done.exit_code == 1
    assert "nothing to make a mesh of" in done.stderr or "no surface" in done.stderr
    assert not (folder / "asset.glb").exists()


def test_json_is_one_object_on_standard_output(folder: Path) -> None:
    told = json.loads(sds3d("export", "here", "--to", "spz,webp", "--json").stdout)
    assert told["assets"] == {"spz": "here/asset.spz", "webp": "here/turntable.webp"}
    assert told["psnr_db"]["spz"] >= 30
    assert told["psnr_db"]["webp"] is None
    assert sds3d("export", "here", "--to", "spz", "--quiet").stderr == ""


def test_films_of_colour_normals_and_depth(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turntable_video, "frames", lambda rep, renderer, look: small_film(rep, renderer, 3, 16, look))
    done = sds3d("export", "here", "--to", "mp4,mp4-normal,mp4-depth,webp")
    assert done.exit_code == 0, done.output
    files = [Path(line) for line in done.stdout.splitlines()]
    assert [file.stem for file in files] == ["turntable", "turntable-normal", "turntable-depth", "turntable"]
    assert all(file.stat().st_size > 100 for file in files)


small_film = turntable_video.frames


def test_size_and_pivot(folder: Path) -> None:
    assert sds3d("export", "here", "--to", "spz", "--size", "3e-1", "--pivot", "base").exit_code == 0
    low, high = bounds(read(folder / "asset.spz"))
    assert float((high - low).max()) == pytest.approx(0.3, abs=1e-3)
    assert float(low[2]) == pytest.approx(0, abs=1e-3)


def test_an_interrupted_run_gives_its_asset_so_far(folder: Path) -> None:
    manifest = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    done = sds3d("export", "here", "--to", "spz")
    assert done.exit_code == 0
    assert 'has not ended: this is its asset before step 8 of stage "shape"' in done.stderr
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"


def test_the_guidance_of_a_lost_file_is_not_asked_for(folder: Path) -> None:
    manifest = json.loads((folder / "run.json").read_text())
    manifest["recipe"]["stages"]["shape"]["guidance"] = {"main": {"kind": "./lost.py:Mine", "scale": 3}}
    (folder / "run.json").write_text(json.dumps(manifest))
    assert sds3d("export", "here", "--to", "spz").exit_code == 0


BAD = {
    "format": (["here", "--to", "spzz"], 'There is no export format "spzz". Did you mean "spz"?'),
    "one of them": (["here", "--to", "ply,stml"], 'no export format "stml"'),
    "none": (["here", "--to", ","], "names no format; known are: ply"),
    "no folder": (["nowhere", "--to", "ply"], "nowhere holds no run; export wants a folder"),
    "no run": (["other", "--to", "ply"], "other holds no run"),
    "a file": (["here/run.json", "--to", "ply"], "holds no run"),
    "size": (["here", "--to", "ply", "--size", "big"], '--size: must be a number, given "big"'),
    "no size": (["here", "--to", "ply", "--size", "0"], "positive number of metres, given 0"),
    "out": (["here", "--to", "ply", "--out", "file"], "file is a file"),
    "device": (["here", "--to", "ply", "--device", "abacus"], "abacus"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_a_sentence(folder: Path, name: str) -> None:
    Path("other").mkdir()
    Path("other/thesis.tex").write_text("precious")
    Path("file").write_text("precious")
    arguments, said = BAD[name]
    before = contents()
    done = sds3d("export", *arguments)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert contents() == before


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


def test_a_running_run_is_refused(folder: Path) -> None:
    running = RunFolder.resume(folder)
    done = sds3d("export", "here", "--to", "spz")
    running.close()
    assert done.exit_code == 2
    assert "here is in use by another run; wait for it" in done.stderr
    assert sds3d("export", "here", "--to", "spz").exit_code == 0


def test_a_run_without_a_checkpoint_is_refused(folder: Path) -> None:
    for file in folder.glob("checkpoint/*"):
        file.unlink()
    done = sds3d("export", "here", "--to", "spz")
    assert done.exit_code == 2
    assert "without a checkpoint yet; go on with: sds3d generate --resume --out here" in done.stderr


def test_a_damaged_checkpoint_costs_a_sentence(folder: Path) -> None:
    for file in folder.glob("checkpoint/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-9])
    assert sds3d("export", "here", "--to", "spz").exit_code == 2


def test_a_file_that_would_not_show_the_asset_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sds3d.export.psnr", lambda *_: float("nan"))
    done = sds3d("export", "here", "--to", "spz")
    assert done.exit_code == 1
    assert "here/asset.spz was not written" in done.stderr
    assert not (folder / "asset.spz").exists()


def test_a_full_disk_costs_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("sds3d.export.write", full)
    done = sds3d("export", "here", "--to", "spz")
    assert done.exit_code == 1
    assert "disk is full" in done.stderr


def test_help_teaches() -> None:
    told = sds3d("export", "--help").stdout
    assert all(word in told for word in ("PSNR", "--to ply --size 0.3 --pivot base", "sds3d list exports", "metre"))
    listed = sds3d("list", "exports").stdout
    assert all(word in listed for word in ("asset.spz", "turntable-depth.mp4", "KHR_gaussian_splatting"))


def saved_run(made: Recipe) -> Outcome:
    return run(made, Prompts("red"), priors())


@pytest.mark.parametrize("made", [recipe(4), two_stages(3)], ids=["one stage", "two stages"])
def test_what_is_rebuilt_is_what_was_saved(made: Recipe, tmp_path: Path) -> None:
    outcome = saved_run(made)
    folder = RunFolder.new(tmp_path / "run")
    folder.save(outcome.stage, outcome.index, tensors(outcome.rep, ()))
    from sds3d.record import checkpoints

    again = rebuild(made, checkpoints(tmp_path / "run")[0])
    folder.close()
    for name, tensor in outcome.rep.named_parameters():
        assert torch.equal(tensor, dict(again.named_parameters())[name])


def test_provenance_names_no_folder_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "my-prior").mkdir()
    manifest: dict[str, Any] = {
        "prompt": "a cube",
        "seed": 3,
        "sds3d": "1.2",
        "recipe": {"about": "Words.", "stages": {"shape": {}, "colour": {}}},
        "priors": {str(tmp_path / "my-prior"): {"licence": "MIT"}, "playroom": {}},
    }
    assert provenance(manifest) == {
        "generator": "sds3d 1.2",
        "prompt": "a cube",
        "seed": "3",
        "recipe": "Words. (shape, colour)",
        "priors": "my-prior (MIT), playroom (no licence given)",
    }


def test_the_views_of_the_check_are_the_run_s_own(folder: Path) -> None:
    asset = open_run(folder)
    assert isinstance(asset, RunAsset)
    assert isinstance(asset.outcome.rep, Gaussians)
    assert (len(asset.cameras), asset.cameras.height) == (4, 16)
