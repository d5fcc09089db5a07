"""The command line: results on standard output, everything else on standard error.

Exit codes: 0 done, 1 the run failed, 2 the input was refused, 130 interrupted with the state saved. Nothing heavy is
imported here; each command imports what it needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from . import __version__
from .ending import FAILED, INTERRUPTED, Stop, refusing, running

if TYPE_CHECKING:
    from .generate import Job, Made
    from .record import RunFolder


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Turn a sentence into a 3D asset by score distillation.

    \b
    sds3d generate "a red cube on top of a blue cylinder"
    sds3d generate "a head with red hair and glasses" --seed 3 --draft
    sds3d edit runs/a-red-cube-s0 "make the cube blue"
    sds3d export runs/a-red-cube-s0 --to spz,mp4-normal
    sds3d explain runs/a-red-cube-s0 --step 40
    sds3d compare "a red cube" --guidance sds,csd
    sds3d list words
    sds3d doctor
    """


@cli.command()
@click.argument("prompt", required=False)
@click.option(
    "--recipe", metavar="NAME|FILE", help="How to make it: `sds3d list recipes`, or a YAML file.  [gaussians]"
)
@click.option("--prior", metavar="NAME|DIR", help="The diffusion model that guides: `sds3d list priors`, or a folder.")
@click.option("--guidance", metavar="NAME|FILE:CLASS", help="Replace each stage's guidance by this one, called main.")
@click.option("--negative", metavar="TEXT", help="What it should not be.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Another seed gives another asset.  [0]")
@click.option("--steps", metavar="N", help="Steps in all, shared by the stages in proportion.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="The run folder.  [runs/PROMPT-sSEED]")
@click.option("--force", is_flag=True, help="Replace the run that the folder holds.")
@click.option("--device", metavar="cpu|cuda", help="Where to compute.  [a GPU where there is one]")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change one value of the recipe.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--start", type=click.Path(path_type=Path), metavar="FILE", help="Begin with your own splat or mesh.")
@click.option("--until", metavar="STAGE", help="End with this stage of the recipe for now; --resume goes on.")
@click.option("--from", "since", metavar="STAGE", help="Make a run's stages anew from this on; --set may change them.")
@click.option("--draft", is_flag=True, help="Only the prior's own views of the prompt, in seconds: draft.png.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the resolved recipe, make nothing.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of paths.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def generate(context: click.Context, dry_run: bool, draft: bool, quiet: bool, as_json: bool, **given: Any) -> None:
    """Make the asset of PROMPT and print its files.

    \b
    sds3d generate "a red cube"
    sds3d generate "a green house with a red roof" --steps 150 --out house
    sds3d generate "a red cube" --set stages.shape.guidance.sds.mix.scale=7
    sds3d generate "a red cube" --guidance ./mine.py:ClassifierScore
    sds3d generate --resume --out house
    sds3d generate "a red cube" --start cube.glb
    sds3d generate --from colour --out house --set stages.colour.steps=300

    A run lives in a folder: preview.png shows it while it is made, run.json tells how it was made. Ctrl-C saves it,
    --resume goes on to the same result.
    """
    context.find_root().meta["debug"] = given.pop("debug")
    with Stop() as stop:
        with refusing():
            from .generate import Request, open_priors, plan

            if given["steps"] is not None:
                given["steps"] = _whole(given["steps"], "--steps")
            job = plan(Request(**given))
            priors = open_priors(job)
        if dry_run:
            _tell_plan(job)
        elif draft:
            _draft(job, priors, as_json)
        else:
            with refusing():
                from .generate import begin

                folder = begin(job, given["force"])
            _tell(_make(job, priors, stop, folder, quiet), as_json, quiet)


@cli.command()
@click.argument("asset", type=click.Path(path_type=Path), metavar="RUN|FILE")
@click.argument("instruction", required=False)
@click.option("--identity", metavar="0..1", help="How much of the old caption stays; 1 keeps all.  [0]")
@click.option(
    "--region",
    metavar="auto|surface|all|FILE",
    default="auto",
    help="What may change: where the prior sees the edit, that of a mesh's texture, all, or the region of a .npy file "
    "or of a .png painted over the texture.  [auto]",
)
@click.option("--source-prompt", metavar="TEXT", help="What the asset shows, where it does not say so itself.")
@click.option("--target-prompt", metavar="TEXT", help="What it shall show, in place of INSTRUCTION.")
@click.option(
    "--guidance",
    metavar="NAME|FILE:CLASS",
    help="How it pulls: iesd, dds, pds, sds by the captions, ip2p by the instruction itself.  [iesd]",
)
@click.option("--prior", metavar="NAME|DIR", help="The diffusion model that guides: `sds3d list priors`, or a folder.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Another seed gives another edit.  [0]")
@click.option("--steps", metavar="N", help="Steps of the edit.  [150]")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="The new run.  [runs/ASSET-INSTRUCTION-s0]")
@click.option("--force", is_flag=True, help="Replace the run that the folder holds.")
@click.option("--device", metavar="cpu|cuda", help="Where to compute.  [a GPU where there is one]")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change one value of the recipe `edit`.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the resolved recipe, make nothing.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of paths.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def edit(context: click.Context, dry_run: bool, quiet: bool, as_json: bool, **given: Any) -> None:
    """Change what INSTRUCTION says of the asset of a RUN or a FILE, as a new run, and print its files.

    \b
    sds3d edit runs/a-red-cube-s0 "make the cube blue"
    sds3d edit her "give her red hair and glasses" --identity 0.3
    sds3d edit chair.glb "paint the legs black" --source-prompt "a red chair with white legs"
    sds3d edit fox.ply --prior ./sd15 --source-prompt "a fox" --target-prompt "a wolf"

    The source is never changed, and an edited run can be edited again: run.json tells the story. What an instruction
    can say: a colour of a part ("make the hair black"), and a head's glasses, hat, beard and smile ("remove the hat").
    `sds3d generate --resume --out DIR` goes on with an interrupted edit.
    """
    context.find_root().meta["debug"] = given.pop("debug")
    with Stop() as stop:
        with refusing():
            from . import editing
            from .generate import open_priors

            given["steps"] = None if given["steps"] is None else _whole(given["steps"], "--steps")
            given["identity"] = None if given["identity"] is None else _number(given["identity"], "--identity")
            planned = editing.plan(editing.Wish(**given))
            priors = open_priors(planned.job)
        if dry_run:
            _tell_plan(planned.job)
            return
        with running():
            folder = editing.begin(planned, priors, given["force"])
        _tell(_make(planned.job, priors, stop, folder, quiet), as_json, quiet)


def _tell_plan(job: Job) -> None:
    """What a dry run would make."""
    told = {"folder": str(job.path), "prompt": job.prompts.prompt, "recipe": job.data()}
    click.echo(json.dumps(told, indent=2))


def _whole(text: str, option: str) -> int:
    """A whole number as typed: 200, or 2e2."""
    from .schema import number

    return int(number(text, int, option))


def _number(text: str, option: str) -> float:
    """A number as typed: 0.3, or 3e-1."""
    from .schema import number

    return float(number(text, float, option))


def _draft(job: Job, priors: Any, as_json: bool) -> None:
    from .generate import draft

    with running():
        path = draft(job, priors)
    click.echo(json.dumps({"draft": str(path)}) if as_json else str(path))


def _make(job: Job, priors: Any, stop: Stop, folder: RunFolder, quiet: bool) -> Made:
    from .generate import make
    from .watchers import ProgressLine

    with running(), contextlib.closing(folder), contextlib.ExitStack() as stack:
        watchers = () if quiet else (stack.enter_context(ProgressLine(job.recipe)),)
        stop.saves = True
        return make(job, priors, folder, watchers, stop, _speaker(quiet))


def _tell(made: Made, as_json: bool, quiet: bool) -> None:
    """The result on standard output, and for an interrupted run how to go on."""
    if as_json:
        assets = {name: str(path) for name, path in made.assets.items()}
        status = "done" if made.whole else "stopped" if made.done else "interrupted"
        where = {"stage": made.stage, "next_step": made.index}
        click.echo(json.dumps({"folder": str(made.path), "status": status, **where, "assets": assets}))
    else:
        for path in made.assets.values() or ([made.path] if made.done else []):
            click.echo(str(path))
    if not made.whole and not quiet:
        where = f"at the end of {made.stage}" if made.done else f"before step {made.index} of {made.stage}"
        click.echo(f"Saved {where}. Go on with:", err=True)
        click.echo(f"  sds3d generate --resume --out {shlex.quote(str(made.path))}", err=True)
    if not made.done:
        raise SystemExit(INTERRUPTED)


@cli.command()
@click.argument("prompt")
@click.option("--guidance", required=True, metavar="A,B,...", help="Names, or FILE:CLASS: `sds3d list guidance`.")
@click.option("--seeds", metavar="N", default="1", help="Runs of each, with the seeds 0 to N - 1.  [1]")
@click.option("--recipe", metavar="NAME|FILE", help="How to make all of them.  [gaussians]")
@click.option("--prior", metavar="NAME|DIR", help="The diffusion model that guides all of them.")
@click.option("--negative", metavar="TEXT", help="What it should not be.")
@click.option("--steps", metavar="N", help="Steps of each run.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="The folder.  [runs/compare-PROMPT]")
@click.option("--force", is_flag=True, help="Make every run again.")
@click.option("--device", metavar="cpu|cuda", help="Where to compute.  [a GPU where there is one]")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change one value of every recipe.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as one JSON object in place of the path.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def compare(context: click.Context, prompt: str, quiet: bool, as_json: bool, **given: Any) -> None:
    """Make PROMPT with several guidances and compare them side by side on one page, report.html.

    \b
    sds3d compare "a red cube" --guidance sds,csd
    sds3d compare "a green house with a red roof" --guidance sds,csm,bsd --seeds 3 --steps 150

    All runs of a seed share their start, cameras and noise. Where the prompt is a caption of the playroom, every asset
    is measured against the exact scene. Each guidance stands alone in the recipe and is called main, with the recipe's
    own times t: `--set stages.shape.guidance.main.KEY=VALUE` changes one value of all that are compared.

    The same command again goes on where it was stopped; what was made is not made again.
    """
    context.find_root().meta["debug"] = given.pop("debug")
    with Stop() as stop:
        with refusing():
            from . import compare as comparing

            given["seeds"] = _whole(given["seeds"], "--seeds")
            if given["steps"] is not None:
                given["steps"] = _whole(given["steps"], "--steps")
            given["guidance"] = tuple(name.strip() for name in given["guidance"].split(","))
            planned = comparing.plan_all(comparing.Contest(prompt, **given))
        with running():
            stop.saves = True
            watching = comparing.no_watchers if quiet else comparing.progress
            result = comparing.compare(planned, watching, stop, _speaker(quiet))
    click.echo(json.dumps({"report": str(result.report), **result.data()}) if as_json else str(result.report))
    if not result.done:
        if not quiet:
            click.echo("Stopped and saved; the same command goes on.", err=True)
        raise SystemExit(INTERRUPTED)


def _speaker(quiet: bool) -> Callable[[str], None]:
    """What tells a sentence to the user, on standard error; nothing where --quiet asks for it."""
    return lambda sentence: None if quiet else click.echo(sentence, err=True)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--step", "index", required=True, metavar="K", help="Which step, counted from 0 as in metrics.jsonl.")
@click.option("--stage", metavar="NAME", help="Of which stage, where the run has several.")
@click.option("--guidance", metavar="FILE:CLASS", help="Again, where the run's guidance came from a file.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="[RUN/explain-STAGE-K-TERM.png]")
@click.option("--device", metavar="cpu|cuda", help="Where to compute.  [where the run was made]")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as one JSON object in place of paths.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def explain(context: click.Context, run: Path, index: str, quiet: bool, as_json: bool, **given: Any) -> None:
    """Show as one picture what step K of a RUN asked its prior, was answered, and pulled toward.

    \b
    sds3d explain runs/a-red-cube-s0 --step 40
    sds3d explain house --step 299 --json

    The picture has one row for each view: the render, the noised render x_t, each prediction as the clean picture X it
    implies, the target that the step is the exact L2 gradient toward (where the method has one), and how strongly the
    gradient and each of its parts pull at every pixel. Below it stand the cosines between the parts: near 1 they agree,
    near 0 they ignore one another, below 0 they fight.

    The step is made again from the nearest checkpoint that the run kept; the run itself is not changed.
    """
    context.find_root().meta["debug"] = given.pop("debug")
    out = given.pop("out")
    with Stop():
        with refusing():
            from .replay import explain_step, find, write_pictures
            from .watchers import ProgressLine

            place = find(run, _whole(index, "--step"), **given)
        with running(), contextlib.ExitStack() as stack:
            watchers = () if quiet else (stack.enter_context(ProgressLine(place.job.recipe)),)
            seen = explain_step(place, watchers, _speaker(quiet))
            paths = write_pictures(place, seen, out)
    if as_json:
        terms = {name: explanation.numbers() for name, explanation in seen.items()}
        click.echo(json.dumps({"pictures": [str(path) for path in paths], "terms": terms}))
    else:
        for path in paths:
            click.echo(str(path))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "names", required=True, metavar="A,B,...", help="Formats: `sds3d list exports`.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Another folder.  [RUN]")
@click.option("--size", metavar="METRES", help="The longest side.  [one unit, the sphere's radius, is one metre]")
@click.option(
    "--pivot", type=click.Choice(["world", "center", "base"]), help="What lies in the file's origin.  [world]"
)
@click.option("--device", metavar="cpu|cuda", help="Where to draw for the check.  [where the run was made]")
@click.option("--quiet", is_flag=True, help="Do not tell how near each file is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of paths.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def export(context: click.Context, run: Path, quiet: bool, as_json: bool, debug: bool, **given: Any) -> None:
    """Write the asset of a RUN in more formats and print the files.

    \b
    sds3d export runs/a-red-cube-s0 --to spz,glb-splat
    sds3d export house --to ply --size 0.3 --pivot base --out for-the-game
    sds3d export house --to mp4,mp4-normal,mp4-depth
    sds3d export house --to glb

    A file that holds the asset is read back and drawn again in the run's own views before it is written; how near it
    comes, as PSNR in dB, is told on standard error, and below the format's bound there is no file. A format of meshes
    asked of Gaussians or of a field makes a mesh first, and says how near that is. An interrupted run gives its
    asset as it stood at its latest checkpoint. A file of the same name is replaced.
    """
    context.find_root().meta["debug"] = debug
    with Stop():
        with refusing():
            from .exporting import Placement, export_run, plan

            names = tuple(dict.fromkeys(name.strip() for name in given["names"].split(",") if name.strip()))
            size = None if given["size"] is None else _number(given["size"], "--size")
            placement = Placement(size, given["pivot"] or "world")
            asset, folder = plan(run, names, given["out"], given["device"])
        with running(), contextlib.closing(folder):
            made = export_run(asset, folder, names, given["out"], placement, _speaker(quiet))
    if as_json:
        assets = {name: str(exported.path) for name, exported in made.items()}
        near = {name: exported.psnr_db for name, exported in made.items()}
        click.echo(json.dumps({"run": str(run), "assets": assets, "psnr_db": near}))
    else:
        for exported in made.values():
            click.echo(str(exported.path))


@cli.command()
@click.argument("pictures", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--prior", required=True, metavar="NAME|DIR", help="Whose word it is; one that sees one view at a time.")
@click.option("--word", default="<back-view>", metavar="WORD", help="The new word.  [<back-view>]")
@click.option("--caption", "captions", multiple=True, metavar="TEXT", help="What the pictures show, with WORD in it.")
@click.option("--start", default="back", metavar="TEXT", help="The words that it begins with.  [back]")
@click.option("--vectors", default="1", metavar="N", help="How many tokens the word stands for.  [1]")
@click.option("--steps", default="300", metavar="N", help="Steps of learning.  [300]")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Another seed gives another word.  [0]")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="[back-view.safetensors, as WORD says]")
@click.option("--device", metavar="cpu|cuda", help="Where to compute.  [a GPU where there is one]")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def learn(context: click.Context, pictures: Path, quiet: bool, debug: bool, **given: Any) -> None:
    """Learn one new word of a prior from the pictures in DIR (textual inversion), and print its file.

    \b
    sds3d learn heads-from-behind --prior sd15 --caption "a photo of a head, back view, <back-view>"
    sds3d generate "a head" --prior sd15+back-view.safetensors \\
        --set 'stages.shape.guidance.sds.behind={words: <back-view>}'

    The prior itself stays as it is. The file is one that others read too (safetensors, diffusers' layout), and theirs
    are read here.
    """
    context.find_root().meta["debug"] = debug
    with Stop():
        with refusing():
            from . import learning
            from .machine import choose_device
            from .priors.catalogue import open_prior

            word = given["word"]
            numbers = {name: _whole(given[name], f"--{name}") for name in ("vectors", "steps")}
            captions = given["captions"] or (f"a photo of a head, back view, {word}",)
            out = given["out"] or Path(f"{word.strip('<>')}.safetensors")
            lesson = learning.lesson(
                pictures, open_prior(given["prior"], choose_device(given["device"])), word, captions
            )
            inversion = learning.Inversion(given["start"], numbers["vectors"], numbers["steps"])
        with running():
            every, say = max(numbers["steps"] // 10, 1), _speaker(quiet)
            learning.learn(
                lesson,
                inversion,
                out,
                given["seed"],
                lambda index, loss: say(f"step {index + 1}  loss {loss:.4f}") if (index + 1) % every == 0 else None,
            )
    click.echo(str(out))


@cli.command("list")
@click.argument("kind", required=False)
def list_(kind: str | None) -> None:
    """Name what there is: recipes, priors, guidance, words, exports, and every other kind of a recipe.

    \b
    sds3d list
    sds3d list words
    """
    with refusing():
        from .listing import listing

        for title, lines in listing(kind):
            click.echo(title)
            for line in lines:
                click.echo(f"  {line}")


@cli.command()
@click.argument("name", required=False)
@click.option("--device", metavar="cpu|cuda", help="Where to compute.  [a GPU where there is one]")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to save the figures.")
@click.option("--only", metavar="A,B,...", help="Of guidance: make the runs of these alone.")
@click.option("--budget", type=click.FloatRange(min=0), metavar="MINUTES", help="Of guidance: begin no run after.")
def bench(name: str | None, device: str | None, out: Path | None, **options: Any) -> None:
    """Measure NAME against exact ground truth, print the figures and save them.

    \b
    sds3d bench prior      how well the playroom's prior draws held-out captions
    sds3d bench playroom   how well the default recipe makes 24 fixed prompts
    sds3d bench guidance   all guidances on equal terms, and the papers' claims; goes on where it was stopped
    """
    with refusing():
        import inspect

        from . import plugins
        from .machine import choose_device

        if name not in plugins.BENCHES:
            raise ValueError(plugins.unknown("benchmark", name or "", plugins.BENCHES))
        function = plugins.fetch(plugins.BENCHES[name])
        chosen = choose_device(device)
        given = {option: value for option, value in options.items() if value is not None}
        for option in given.keys() - inspect.signature(function).parameters.keys():
            raise ValueError(f"sds3d bench {name} takes no --{option}.")
    with running():
        function(chosen, out, **given)


@cli.command()
def doctor() -> None:
    """Tell what this machine can do, what draws what and why, and what to install for more."""
    with running():
        from .machine import report

        for name, sentence in report():
            click.echo(f"{name:24}{sentence}")


def main() -> NoReturn:
    """The entry point `sds3d`."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left; a second error at exit must not follow.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = FAILED
    else:
        code = 0
    finally:
        # What was asked is over; an interrupt while Python takes itself down would only hide how it ended.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)
