"""How well edits do what they say: `python benchmarks/editing.py` writes `results/editing.jsonl` and `editing.json`.

`--plot` draws `editing.png` of what is there (it needs `pip install matplotlib`): the edit against the identity.

24 pairs of a scene of the playroom and an instruction. The source is a set of Gaussians fitted to 24 exact views; it is
edited as `sds3d edit` does it, and judged in the 24 views of all measures against the exact scene of the new caption:

| figure   | what it is                                                                                              |
|----------|---------------------------------------------------------------------------------------------------------|
| region   | the pixels at which the two exact scenes differ by more than 0.1 in some channel                         |
| before   | dB inside the region of the source against the exact edited scene; pairs above 12 dB are not counted      |
| after    | the same of the edited asset                                                                             |
| moved    | mean absolute change of colour on the object's other pixels, of either scene less the region             |

Arms: `default` and `ip2p` (in the region that the prior finds); `ip2p-all`, `iesd-S` for shares S of 0 to 1, `dds`,
`pds` and `sds`, these everywhere. Runs that are there are not made again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fit import KINDS, fit, shown

from sds3d import editing
from sds3d.core import Background, RenderOutput, Representation, Step
from sds3d.export import export
from sds3d.generate import make, open_priors
from sds3d.playroom import grammar
from sds3d.playroom.bench import save
from sds3d.playroom.grammar import parse
from sds3d.playroom.instructions import rewrite
from sds3d.playroom.measures import psnr, views
from sds3d.playroom.render import render
from sds3d.playroom.runs import append, lines
from sds3d.playroom.scenes import build
from sds3d.priors.catalogue import open_prior
from sds3d.renderers.splats import Splats

PAIRS = (
    ("hair", "a head with light skin, black hair and blue eyes", "give her red hair"),
    ("hair", "a head with tan skin, white hair, brown eyes and glasses", "make the hair black"),
    ("hair", "a head with dark skin, brown hair, green eyes and a smile", "dye her hair blond"),
    ("skin", "a head with light skin, black hair and blue eyes", "make the skin dark"),
    ("skin", "a head with dark skin, red hair, brown eyes and a beard", "give him light skin"),
    ("skin", "a head with light skin, white hair, green eyes and glasses", "make her skin brown"),
    ("eyes", "a head with light skin, brown hair and blue eyes", "make the eyes brown"),
    ("eyes", "a head with tan skin, blond hair and brown eyes", "give her blue eyes"),
    ("eyes", "a head with dark skin, white hair and green eyes", "change the eye colour to blue"),
    ("glasses", "a head with light skin, red hair and blue eyes", "give her glasses"),
    ("glasses", "a head with tan skin, black hair, green eyes and a beard", "add glasses"),
    ("glasses", "a head with light skin, blond hair, brown eyes and glasses", "take off the glasses"),
    ("hat", "a head with light skin, brown hair and green eyes", "give him a hat"),
    ("hat", "a head with brown skin, white hair, brown eyes and a smile", "put on a hat"),
    ("hat", "a head with light skin, blond hair, blue eyes and a hat", "remove the hat"),
    ("beard", "a head with light skin, black hair and brown eyes", "give him a beard"),
    ("beard", "a head with tan skin, white hair and blue eyes", "add a beard"),
    ("beard", "a head with light skin, brown hair, green eyes and a beard", "remove the beard"),
    ("smile", "a head with light skin, red hair and green eyes", "make her smile"),
    ("smile", "a head with dark skin, black hair, brown eyes and a smile", "remove the smile"),
    ("colour", "a red cube on top of a blue cylinder", "make the cube green"),
    ("colour", "a green house with a red roof", "paint the roof blue"),
    ("colour", "a yellow sphere", "make it purple"),
    ("colour", "a white car with red wheels", "make the car orange"),
)
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "ip2p": {"guidance": "ip2p"},
    "ip2p-all": {"guidance": "ip2p", "region": "all"},
    **{f"iesd-{share:g}": {"identity": 1 - share, "region": "all"} for share in (0.0, 0.25, 0.5, 0.75, 1.0)},
    **{kind: {"guidance": kind, "region": "all"} for kind in ("dds", "pds", "sds")},
}
DIFFERENT, COUNTED_DB = 0.1, 12.0


def drawn(rep: Representation) -> RenderOutput:
    cameras = views()
    with torch.no_grad():
        return Splats()(rep, cameras, Background(torch.ones(len(cameras), 3)))


def exact(caption: str) -> RenderOutput:
    cameras = views()
    return render(build(parse(caption)), cameras, torch.ones(len(cameras), 3))


def fitted(caption: str) -> Representation:
    """Gaussians of an exact scene."""
    kind, cameras = KINDS["gaussians"], shown()
    rep = kind.start(None, Step(0, "fit"))
    fit(rep, kind, render(build(parse(caption)), cameras, torch.zeros(len(cameras), 3)), cameras)
    return rep


def edited(rep: Representation, caption: str, instruction: str, priors: dict[str, Any], arm: str) -> Representation:
    """What `sds3d edit` makes of it."""
    with tempfile.TemporaryDirectory() as place:
        export("ply", rep, Path(place), Splats(), {"prompt": caption})
        wish = editing.Wish(
            Path(place) / "asset.ply", instruction, out=Path(place) / "run", overrides=["exports=[]"], **ARMS[arm]
        )
        planned = editing.plan(wish)
        opened = open_priors(planned.job, priors)
        with contextlib.closing(editing.begin(planned, opened)) as folder:
            return make(planned.job, opened, folder, checkpoint_s=1e9).rep


def judge(source: Representation, made: Representation, before: str, after: str) -> dict[str, Any]:
    """The figures of the table above."""
    (was, is_), (true_was, true_is) = map(drawn, (source, made)), map(exact, (before, after))
    region = (true_is.rgb - true_was.rgb).abs().amax(dim=-1, keepdim=True) > DIFFERENT
    others = ((true_is.alpha > 0.5) | (true_was.alpha > 0.5)) & ~region
    return {
        "region": int(region.sum()),
        "before_db": round(psnr(was.rgb, true_is.rgb, region), 2),
        "after_db": round(psnr(is_.rgb, true_is.rgb, region), 2),
        "moved": round(float((is_.rgb - was.rgb).abs()[others.expand_as(was.rgb)].mean()), 5),
    }


def runs(arms: list[str], pairs: int, kept: list[dict[str, Any]], prior: str) -> Iterator[dict[str, Any]]:
    """A row for each run that is missing."""
    there = {(row["arm"], row["source"], row["instruction"]) for row in kept}
    priors = {prior: open_prior(prior)}
    for word, caption, instruction in PAIRS[:: max(len(PAIRS) // pairs, 1)]:
        todo = [arm for arm in arms if (arm, caption, instruction) not in there]
        source = fitted(caption) if todo else None
        for arm in todo:
            assert source is not None
            began = time.process_time()
            made = edited(source, caption, instruction, priors, arm)
            seconds = round(time.process_time() - began, 1)
            after = grammar.caption(rewrite(parse(caption), instruction))
            told = {"arm": arm, "word": word, "source": caption, "instruction": instruction, "cpu_seconds": seconds}
            yield told | judge(source, made, caption, after)


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each arm: means over the counted pairs, each word's mean, and how far the rest moved over all pairs."""
    found: dict[str, Any] = {}
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        counted = [row for row in own if row["before_db"] < COUNTED_DB]
        if not counted:
            continue
        words = {
            word: [row for row in own if row["word"] == word] for word in dict.fromkeys(row["word"] for row in own)
        }
        found[arm] = {
            "pairs": len(own),
            "counted": len(counted),
            "before_db": round(statistics.mean(row["before_db"] for row in counted), 2),
            "after_db": round(statistics.mean(row["after_db"] for row in counted), 2),
            "gain_db": round(statistics.mean(row["after_db"] - row["before_db"] for row in counted), 2),
            "moved": round(statistics.mean(row["moved"] for row in own), 4),
            "moved_most": max(row["moved"] for row in own),
            "cpu_seconds": round(statistics.mean(row["cpu_seconds"] for row in own), 1),
            "words_after_db": {
                word: round(statistics.mean(r["after_db"] for r in of), 1) for word, of in words.items()
            },
        }
    return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Each arm's mean gain inside the region over how far the rest moved, on the pairs that all of them have."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    everywhere = [arm for arm, wish in ARMS.items() if wish.get("region") == "all"]
    arms = [arm for arm in everywhere if any(row["arm"] == arm for row in rows)]
    done = [{(row["source"], row["instruction"]) for row in rows if row["arm"] == arm} for arm in arms]
    shared = set.intersection(*done)

    def mean(arm: str) -> tuple[float, float]:
        own = [row for row in rows if row["arm"] == arm and (row["source"], row["instruction"]) in shared]
        gain = statistics.mean(row["after_db"] - row["before_db"] for row in own)
        return statistics.mean(row["moved"] for row in own), gain

    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    shares = [mean(arm) for arm in arms if arm.startswith("iesd")]
    axes.plot(*zip(*shares, strict=True), color="tab:blue", zorder=1)
    for arm in arms:
        x, y = mean(arm)
        axes.scatter(x, y, color="tab:blue" if arm.startswith("iesd") else "tab:orange", zorder=2)
        axes.annotate(arm, (x, y), xytext=(5, 5), textcoords="offset points")
    axes.set_xlabel("mean absolute change of colour on the object's other pixels (identity lost)")
    axes.set_ylabel("gain inside the region, dB (edit made)")
    axes.set_title(f"Edits without a region, {len(shared)} pairs")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "editing.json")
    parser.add_argument("--arms", default="default", help="with commas between")
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="so many of them, evenly chosen")
    parser.add_argument("--plot", action="store_true", help="draw the picture of what is there, and edit nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    arms = given.arms.split(",")
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        parser.error(f"there is no arm {', '.join(unknown)}; known are: {', '.join(ARMS)}")
    file = given.out.with_suffix(".jsonl")
    kept = lines(file)
    if given.plot:
        return plot(kept, given.out.with_suffix(".png"))
    for row in runs(arms, given.pairs, list(kept), "playroom"):
        kept.append(row)
        print(json.dumps(row), flush=True)
        append(file, row)
    save("editing", {"command": "python benchmarks/editing.py", "figures": figures(kept)}, given.out)


if __name__ == "__main__":
    main()
