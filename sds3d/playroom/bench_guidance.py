"""`sds3d bench guidance`: every generation method on equal terms, and the papers' claims, on runs that are kept.

What is run, and on which terms, is told in `guidance_lists`. The figures go to `bench-guidance.json`, a page of tables
to `.md` and the runs to `.jsonl` beside it. Beside SDS, the methods of the screen with the least mean place by
silhouette and by colour at equal rows go on to the final. With --budget 0 nothing is run, and the tables are written
of what is there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .. import plugins
from ..core import Prior
from ..engine import check
from .bench import result_path, save
from .bench_tables import figures_of, markdown, places
from .claims import judge, mean
from .guidance_lists import CLAIMS, SETTING, Lists, Setting, methods
from .runs import Entry, Further, append, line, make, nothing, read


@dataclass
class Bench:
    """The file of runs at work.

    only: the arms that are made, or None for all. until: the `time.monotonic` from which on no run is begun. further:
    more figures of each asset.
    """

    path: Path
    priors: Mapping[str, Prior]
    device: torch.device
    only: frozenset[str] | None = None
    until: float = float("inf")
    further: Further = nothing

    def __post_init__(self) -> None:
        self.kept = read(self.path)

    def missing(self, entries: Sequence[Entry]) -> list[Entry]:
        """Runs that are wanted and not there, each once."""
        wanted = {entry.key(self.priors): entry for entry in entries}
        return [entry for key, entry in wanted.items() if key not in self.kept]

    def make_all(self, title: str, entries: Sequence[Entry]) -> bool:
        """Make what is missing, and say how long the rest will take. False where the time ran out first."""
        todo = [entry for entry in self.missing(entries) if self.only is None or entry.arm in self.only]
        for number, entry in enumerate(todo, 1):
            if time.monotonic() >= self.until:
                print(f"{title}: the time is up; {len(todo) - number + 1} runs are left, the same command goes on.")
                return False
            figures = make(entry, self.priors, self.device, self.further)
            kept = line(entry, entry.key(self.priors), figures, self.device)
            append(self.path, kept)
            self.kept[kept["key"]] = kept
            left = self.expected(todo[number:])
            print(f"{title} {number}/{len(todo)}  {told(kept)}  about {left / 60:.0f} min left", flush=True)
        return True

    def expected(self, entries: Sequence[Entry]) -> float:
        """Seconds that runs may take: each the mean of its arm and steps, else of all."""
        known: dict[tuple[str, int] | None, list[float]] = {}
        for kept in self.kept.values():
            for about in ((kept["arm"], kept["steps"]), None):
                known.setdefault(about, []).append(kept["seconds"])
        means = {about: mean(seconds) for about, seconds in known.items()}
        return sum(means.get((entry.arm, entry.steps), means[None]) for entry in entries)

    def runs(self, entries: Sequence[Entry]) -> dict[str, dict[tuple[str, int], dict[str, Any]]]:
        """arm -> (prompt, seed) -> what is kept, for the runs of a list that are there."""
        found: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
        for entry in entries:
            kept = self.kept.get(entry.key(self.priors))
            if kept is not None:
                found.setdefault(entry.arm, {})[entry.prompt, entry.seed] = kept
        return found


def told(kept: Mapping[str, Any]) -> str:
    """A run in a line."""
    what = f"{kept['arm']}, {kept['steps']} steps, seed {kept['seed']}, {kept['prompt']}"
    if "failed" in kept:
        return f"FAILED {kept['seconds']:6.1f} s  {what}: {kept['failed']}"
    return f"iou {kept['iou']:.3f} {kept['psnr']:5.1f} dB {kept['seconds']:6.1f} s  {what}"


def guidance(
    device: torch.device,
    out: Path | None,
    only: str | None = None,
    budget: float | None = None,
    setting: Setting | None = None,
) -> None:
    """Make what is missing of all lists and write the tables of what is there.

    only: arms to make, with commas between. budget: minutes after which no run is begun. Raises ValueError for an arm
    that does not exist and for a file that holds something else.
    """
    from ..priors.catalogue import open_prior

    setting = setting or SETTING
    until = time.monotonic() + 60 * (float("inf") if budget is None else budget)
    priors = {name: open_prior(name, device) for name in ("playroom", "playroom-single", "playroom-latent")}
    able, refused = methods(setting, priors["playroom"])
    lists = Lists.of(setting, able)
    screen, level, claims = lists.screen(), lists.screen(equal_steps=True), lists.claims()
    arms = {entry.arm: entry for entry in (*screen, *claims)}
    for entry in arms.values():
        check(entry.recipe, entry.prompts, priors)
    path = result_path("guidance", out)
    bench = Bench(path.with_suffix(".jsonl"), priors, device, named_arms(only, arms), until)

    final: list[Entry] = []
    if bench.make_all("screen", screen):
        chosen = best(bench, screen, setting.best)
        final = lists.final(chosen) if chosen else []
        for title, entries in (("final", final), ("claims", claims), ("equal steps", level)):
            if not bench.make_all(title, entries):
                break
    named = {"final": final, "screen, equal rows": screen, "screen, equal steps": level, "claims": claims}
    results = summary(bench, lists, named) | {"refused": refused}
    save("guidance", results, path)
    path.with_suffix(".md").write_text(markdown(results))


def named_arms(only: str | None, arms: Mapping[str, Entry]) -> frozenset[str] | None:
    """The arms of --only. Raises ValueError for one that does not exist."""
    names = None if only is None else [name.strip() for name in only.split(",")]
    for name in names or ():
        if name not in arms:
            raise ValueError(plugins.unknown("arm of this benchmark", name, arms))
    return None if names is None else frozenset(names)


def best(bench: Bench, screen: Sequence[Entry], count: int) -> list[str]:
    """The best methods of the screen beside SDS; none before every method has been on it."""
    if bench.missing(screen):
        return []
    return [kind for kind in places(bench.runs(screen)) if kind != "sds"][:count]


def summary(bench: Bench, lists: Lists, named: Mapping[str, Sequence[Entry]]) -> dict[str, Any]:
    """Settings, figures, tables and claims of what is there. named: the lists of runs by their titles."""
    setting = lists.setting
    judged = [judge(claim, bench.runs(named["claims"])).data() for claim in CLAIMS]
    tables = {
        title: {arm: figures_of(list(runs.values())) for arm, runs in bench.runs(entries).items()}
        for title, entries in named.items()
    }
    return {
        "settings": {
            **asdict(setting),
            "scale": setting.scale,
            "prompts": setting.prompts(),
            "screened": setting.screened(),
            "faces": setting.faces(),
            "steps_at_equal_rows": dict(lists.equal_rows),
        },
        "figures": {
            "runs": len(bench.kept),
            "runs_missing": {title: len(bench.missing(entries)) for title, entries in named.items()},
            "best": best(bench, named["screen, equal rows"], setting.best),
            **{f"claim: {row['claim']} ({row['score']})": row["verdict"] for row in judged},
        },
        "tables": tables,
        "claims": judged,
    }
