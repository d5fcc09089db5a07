"""`sds3d edit`: a run or a file becomes a new run with another caption; nothing of the source is touched."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from small_run import prior

from sds3d.cli import cli
from sds3d.core import Condition, Latent, Query, Step
from sds3d.diffusion import eps_from_x0
from sds3d.editing import EDIT_PRIOR, Wish
from sds3d.editing import plan as edit_plan
from sds3d.export import export
from sds3d.export import video as turntable_video
from sds3d.export.provenance import told
from sds3d.finding import GRID, find_region
from sds3d.generate import Request, plan
from sds3d.guidance.iesd import Iesd
from sds3d.guidance.ip2p import Ip2p
from sds3d.opening import opened
from sds3d.priors.analytic import AnalyticPrior
from sds3d.prompts import Prompts
from sds3d.record import RunFolder
from sds3d.renderers.raster import Raster
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import Gaussians
from sds3d.representations.mesh import icosphere
from sds3d.representations.start import Blob
from sds3d.terms import Term

SMALL = ("--set", "stages.shape.cameras.size=16", "--set", "stages.shape.start.count=40",
         "--set", "stages.shape.optimise.max_count=60", "--set", "exports=[ply]")  # fmt: skip
TINY = ("--steps", "6", "--quiet", "--region", "all", "--set", "stages.edit.cameras.size=16", "--set", "exports=[]")


class Obedient(AnalyticPrior):
    """Shown the source, it draws it with red and blue exchanged, whatever it is told."""

    reads_source = True

    def condition(self, text, cameras, reference=None, control=()) -> Condition:
        return replace(super().condition(text, cameras), image=None if reference is None else self.encode(reference))

    def eps(self, query: Query) -> Latent:
        alpha, sigma = self.noise_level(query.t)
        assert query.condition.image is not None
        return eps_from_x0(query.z_t, query.condition.image.flip(1), alpha, sigma)


def obedient() -> Obedient:
    return Obedient(prior(4).means, prior(4).std, prior(4).names, group=4)


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every prior is the analytic one, which knows red and blue; films are short, and the working folder is empty."""
    monkeypatch.setattr("sds3d.priors.catalogue.open_prior", lambda name, device: prior(4))
    monkeypatch.setattr(turntable_video, "FRAMES", 4)
    monkeypatch.chdir(tmp_path)


def sds3d(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def edited(*arguments: str) -> Path:
    done = sds3d("edit", *TINY, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return Path(json.loads(done.stdout)["folder"])


def manifest(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a red cube, which no test touches."""
    folder = tmp_path_factory.mktemp("made") / "red"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sds3d.priors.catalogue.open_prior", lambda name, device: prior(4))
        done = sds3d("generate", "a red cube", "--steps", "8", "--out", str(folder), "--quiet", *SMALL)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def red(small_world: None, made_once: Path) -> Path:
    """The folder of that run, for this test alone."""
    return Path(shutil.copytree(made_once, "red"))


def test_an_edit_is_a_new_run_that_begins_with_the_source_and_leaves_it_alone(red: Path) -> None:
    before = {file: file.read_bytes() for file in red.rglob("*") if file.is_file()}
    made = edited("red", "make the cube blue")
    assert made == Path("runs/make-the-cube-blue-of-red-s0")
    assert {file: file.read_bytes() for file in red.rglob("*") if file.is_file()} == before
    facts = manifest(made)
    assert (facts["prompt"], facts["source"], facts["status"]) == ("a blue cube", "a red cube", "done")
    said = {"from": "red", "source": "a red cube", "instruction": "make the cube blue", "prompt": "a blue cube"}
    assert facts["edits"] == [said]
    start = opened(made / "source.ply")
    assert torch.equal(start.means, opened(red / "asset.ply").means)  # type: ignore[union-attr]


def test_the_asset_turns_toward_the_new_caption(red: Path) -> None:
    made = edited("red", "make it blue", "--steps", "40", "--region", "all", "--set", "exports=[ply]")
    before, after = (opened(folder).rgb.mean(dim=0) for folder in (red / "asset.ply", made / "asset.ply"))  # type: ignore[union-attr]
    assert after[2] > before[2] and after[0] < before[0]


def test_an_edited_run_is_edited_again_and_tells_its_story(red: Path) -> None:
    once = edited("red", "make it blue", "--out", "once")
    twice = edited("once", "make it red", "--out", "twice")
    story = manifest(twice)["edits"]
    assert [(edit["from"], edit["prompt"]) for edit in story] == [("red", "a blue cube"), ("once", "a red cube")]
    assert story[:1] == manifest(once)["edits"]


def test_an_interrupted_edit_goes_on_with_its_source(red: Path) -> None:
    made = edited("red", "make it blue", "--out", "blue")
    assert plan(Request(out=made, resume=True)).prompts == Prompts("a blue cube", source="a red cube")
    again = sds3d("generate", "--resume", "--out", "blue", "--quiet")
    assert again.exit_code == 0, again.output


def test_a_file_says_what_it_shows_and_one_that_does_not_needs_to_be_told(red: Path) -> None:
    made = edited(str(red / "asset.ply"), "make it blue", "--out", "of-file")
    assert manifest(made)["source"] == "a red cube"
    export("ply", Blob(30)(None, Step(0)), Path(), Splats())
    refused = sds3d("edit", "asset.ply", "make it blue", *TINY)
    assert refused.exit_code == 2 and "--source-prompt" in refused.output
    assert manifest(edited("asset.ply", "make it blue", "--source-prompt", "a red cube"))["prompt"] == "a blue cube"


def test_a_mesh_stays_a_mesh(small_world: None) -> None:
    export("glb", icosphere(2, 0.6), Path(), Raster(), {"prompt": "a red sphere"})
    made = edited("asset.glb", "make the sphere blue")
    assert len(opened(made / "source.glb")) == len(icosphere(2))  # type: ignore[arg-type]
    assert manifest(made)["recipe"]["stages"]["edit"]["renderer"]["kind"] == "raster"


def test_a_mesh_of_a_run_is_edited_in_the_light_of_its_run(small_world: None) -> None:
    lit = ("--set", "stages.texture.renderer={kind: raster, light: {kind: lambert}}", "--set", "exports=[]")
    small = ("--set", "stages.texture.cameras.size=16", "--set", "stages.texture.start.texels=16")
    export("glb", icosphere(2, 0.6), Path(), Raster(), {"prompt": "a red sphere"})
    made = sds3d("generate", "a red sphere", "--recipe", "texture", "--start", "asset.glb", "--steps", "2", "--out",
                 "lit", "--quiet", *lit, *small)  # fmt: skip
    assert made.exit_code == 0, made.output
    stages = [manifest(folder)["recipe"]["stages"] for folder in (Path("lit"), edited("lit", "make it blue"))]
    assert stages[1]["edit"]["renderer"] == stages[0]["texture"]["renderer"]
    assert stages[1]["edit"]["renderer"]["light"]["kind"] == "lambert"


def test_identity_weighs_the_two_captions(red: Path) -> None:
    made = edited("red", "make it blue", "--identity", "0.75")
    assert manifest(made)["recipe"]["stages"]["edit"]["guidance"]["edit"]["share"] == 0.25


def test_a_region_is_kept_with_the_run_and_nothing_outside_of_it_moves(
    red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save("none.npy", np.zeros((4, 4, 4), np.float32))
    still = edited("red", "make it blue", "--region", "none.npy", "--out", "still", "--set", "exports=[ply]")
    # Where nothing may change the asset starts at the only minimum, the source, so that every gradient is 0.
    assert torch.equal(opened(still / "asset.ply").means, opened(red / "asset.ply").means)  # type: ignore[union-attr]
    captions = prior(4)
    monkeypatch.setattr(
        "sds3d.priors.catalogue.open_prior", lambda name, device: obedient() if name == EDIT_PRIOR else captions
    )
    found = edited("red", "make it blue", "--region", "auto", "--out", "found")
    grid = np.load(found / "source.region.npy")
    assert grid.shape == (GRID,) * 3 and grid.min() >= 0 and grid.max() == 1


def test_a_prior_that_reads_instructions_is_told_it_in_its_own_words(red: Path) -> None:
    plan = edit_plan(Wish(red, "Make it BLUE!", guidance="ip2p", region="all"))
    stage = plan.job.recipe.stages["edit"]
    assert stage.prior == "playroom-edit" and isinstance(stage.guidance["edit"].guidance, Ip2p)
    assert plan.job.prompts.instruction == "make it blue" and plan.job.prompts.prompt == "a blue cube"
    same = edit_plan(Wish(red, "make it blue", prior="playroom-edit", region="all"))
    assert same.job.recipe == plan.job.recipe
    other = edit_plan(Wish(red, "Carve it!", prior="other/model", guidance="ip2p", region="all"))  # any words will do
    assert other.job.prompts.instruction == "Carve it!" and other.job.prompts.prompt == "a red cube, Carve it!"
    assert edit_plan(Wish(red, "make it blue", region="all")).job.prompts.instruction is None


def test_the_region_lies_where_the_two_captions_differ() -> None:
    # Red and blue differ in the disc in the middle of every view, and not in what lies around it.
    rep = Blob(200, 0.5)(None, Step(0))
    assert isinstance(rep, Gaussians)
    region = find_region([Term("edit", Iesd(), prior(4), Prompts("blue", source="red"))], rep, Splats(), Step(0))
    ticks = torch.linspace(-1, 1, GRID)
    away = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij")).norm(dim=0)
    assert region[away < 0.3].mean() > 0.5 and region[away > 0.95].mean() < 0.15


def test_a_prior_that_is_shown_the_source_finds_just_what_it_changes() -> None:
    """Half of a ball is red, which becomes blue, and half green, which stays as it is."""
    rep = Blob(400, 0.5)(None, Step(0))
    assert isinstance(rep, Gaussians)
    with torch.no_grad():
        left = rep.means[:, 1:2] > 0
        rep.colour_logits.copy_(torch.where(left, torch.tensor([6.0, -6.0, -6.0]), torch.tensor([-6.0, 6.0, -6.0])))
        rep.opacity_logits.fill_(4.0)
    term = Term("edit", Ip2p(), obedient(), Prompts("blue", source="red", instruction="blue"))
    region = find_region([term], rep, Splats(), Step(0))
    torch.testing.assert_close(find_region([term, term], rep, Splats(), Step(0)), region)
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, GRID)] * 3, indexing="ij")
    near = (x**2 + y**2 + z**2).sqrt() < 0.5  # What lies too deep to be seen is in no region.
    assert region[near & (y > 0.15)].mean() > 0.3
    assert region[near & (y < -0.15)].mean() < 0.03


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "make it blue"), "There is no run and no file nowhere"),
        (("red",), "An edit needs an instruction"),
        (("red", "make it transparent"), "no transparent"),
        (("red", "give it glasses"), "has no head"),
        (("red", "make it red"), "changes nothing"),
        (("red", "make it blue", "--identity", "2"), r"--identity must lie in \[0, 1\]"),
        (("red", "make it blue", "--identity", "0.5", "--guidance", "dds"), "dds has no such number"),
        (("red", "make it blue", "--guidance", "ip2p"), "needs a prior that is shown the source"),
        (("red", "--target-prompt", "blue", "--guidance", "ip2p"), "ip2p reads an instruction"),
        (("red", "make it blue", "--region", "none.npy"), "There is no file none.npy"),
        (("red", "make it blue", "--prior", "sd15"), "--target-prompt"),
        (("red", "make it blue", "--out", "red"), "red"),
        (("red", "make it blue", "--source-prompt", "a fox"), "fox"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    red: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = sorted(str(path) for path in Path().rglob("*"))
    refused = sds3d("edit", *TINY, *arguments)
    assert refused.exit_code == 2, refused.output
    assert len(refused.stderr.splitlines()) == 1
    assert re.search(said, refused.stderr), refused.stderr
    assert sorted(str(path) for path in Path().rglob("*")) == before


def test_a_run_at_work_and_one_that_has_not_ended_are_refused(red: Path) -> None:
    lock = RunFolder(red)
    refused = sds3d("edit", "red", "make it blue", *TINY)
    lock.close()
    assert refused.exit_code == 2 and "in use by another run" in refused.stderr
    facts = manifest(red) | {"status": "interrupted"}
    (red / "run.json").write_text(json.dumps(facts))
    refused = sds3d("edit", "red", "make it blue", *TINY)
    assert refused.exit_code == 2 and "has not ended" in refused.stderr


@pytest.mark.parametrize("name", ["ply", "obj", "glb", "ply-mesh"])
def test_the_words_of_a_file_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    words = {"prompt": 'a "red" cube,\nörange: roof', "seed": "3"}
    rep = Blob(30)(None, Step(0)) if name == "ply" else icosphere(1)
    made = export(name, rep, tmp_path, Splats() if name == "ply" else Raster(), words)
    assert told(made.path) == words


def test_files_of_others_say_nothing(tmp_path: Path) -> None:
    for name, data in (("a.glb", b"glTF"), ("b.glb", b"x" * 64), ("c.ply", b"ply\nend_header\n"), ("d.stl", b"solid")):
        (tmp_path / name).write_bytes(data)
        assert told(tmp_path / name) == {}
