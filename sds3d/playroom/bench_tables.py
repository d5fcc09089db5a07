"""The figures of `sds3d bench guidance` from its runs: means with intervals, an order, and a page of tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .bootstrap import interval
from .claims import PAIRS, SCORES, Figures, Runs, mean


def own(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.get(name)


# title -> what it is, how many digits, its value of a run
COLUMNS: dict[str, tuple[str, int, Callable[[Figures], float | None]]] = {
    "iou": ("silhouette IoU", 3, own("iou")),
    "psnr": ("colour, dB", 1, own("psnr")),
    "two_facedness": ("two-faced, dB", 1, own("two_facedness")),
    "saturation_error": ("saturation error", 3, SCORES["saturation"]),
    "over_saturation": ("over-saturation", 3, SCORES["over-saturation"]),
    "haze": ("haze", 3, own("haze")),
    "rows": ("rows", 0, own("rows")),
    "seconds": ("seconds", 1, own("seconds")),
}


def figures_of(runs: Sequence[Figures]) -> dict[str, Any]:
    """The mean of each column with its interval over runs, the steps, and how many runs there are and failed."""
    good = [figures for figures in runs if "failed" not in figures]
    found: dict[str, Any] = {"runs": len(runs), "failed": len(runs) - len(good), "steps": runs[0]["steps"]}
    found["seeds"] = len({figures["seed"] for figures in runs})
    for name, (_, _, value) in COLUMNS.items():
        values = [number for figures in good if (number := value(figures)) is not None]
        if values:
            found[name] = {"mean": mean(values), "interval": interval(values), "of": len(values)}
    return found


def places(runs: Runs) -> list[str]:
    """Arms from the best to the worst by their mean place in silhouette and in colour; a run that failed counts 0."""
    worth = {
        name: {arm: mean([figures.get(name, 0.0) for figures in by_place.values()]) for arm, by_place in runs.items()}
        for name in ("iou", "psnr")
    }
    ranks = [sorted(by_arm, key=lambda arm: -by_arm[arm]) for by_arm in worth.values()]
    return sorted(runs, key=lambda arm: (sum(rank.index(arm) for rank in ranks), -worth["iou"][arm]))


def cell(figures: Mapping[str, Any], name: str) -> str:
    """A mean, with its interval where there are seeds."""
    if name not in figures:
        return "-"
    digits, found = COLUMNS[name][1], figures[name]
    text = f"{found['mean']:.{digits}f}"
    if found["interval"] is None or figures["seeds"] < 2 or name in ("rows", "seconds"):
        return text
    low, high = found["interval"]
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def markdown(results: Mapping[str, Any]) -> str:
    """The page beside the figures."""
    settings = results["settings"]
    parts = [
        "# The guidance benchmark",
        "Written by `sds3d bench guidance`; what is run is told in `sds3d/playroom/guidance_lists.py`. All methods "
        "have the default recipe's own times t and, where they have a mix, its guidance scale of "
        f"{settings['scale']:g}; SDS has {settings['steps']} steps. Brackets hold 95 % bootstrap intervals of the mean "
        "over runs. Two-faced: the back's PSNR to the true front less that to the true back, of heads; above 0 a head "
        "has a face behind. Saturation error: of the mean chroma, which over-saturation counts only above the truth. "
        "Rows: that networks saw in a run, training included. Seconds are those of this machine, as busy as it was.",
    ]
    for title, by_arm in results["tables"].items():
        order = sorted(by_arm, key=lambda arm: -by_arm[arm].get("iou", {"mean": 0})["mean"])
        rows = [
            [arm, str(by_arm[arm]["steps"]), counted(by_arm[arm]), *(cell(by_arm[arm], name) for name in COLUMNS)]
            for arm in order
        ]
        heads = ["method", "steps", "runs", *(head for head, _, _ in COLUMNS.values())]
        parts += [f"## {title.capitalize()}", table(heads, rows) if rows else "Not measured yet."]
    parts += ["## Claims of the papers", claims(results["claims"])]
    if results["refused"]:
        parts += ["## Not run", "\n".join(f"- {kind}: {why}" for kind, why in results["refused"].items())]
    return "\n\n".join(parts) + "\n"


def counted(figures: Mapping[str, Any]) -> str:
    failed = figures["failed"]
    return f"{figures['runs']}, {failed} failed" if failed else str(figures["runs"])


def claims(judged: Sequence[Mapping[str, Any]]) -> str:
    """The claims with their verdicts; a difference below 0 speaks for the claim."""

    def between(pair: Sequence[float] | None) -> str:
        return "-" if pair is None else f"[{pair[0]:.3f}, {pair[1]:.3f}]"

    rows = [
        [
            row["claim"],
            row["source"],
            f"{row['lower']} - {row['higher']}",
            "-" if row["difference"] is None else f"{row['difference']:.3f}",
            between(row["over_pairs"]),
            between(row["over_prompts"]),
            f"{row['pairs']} of {PAIRS}" if row["pairs"] < PAIRS else str(row["pairs"]),
            row["verdict"],
        ]
        for row in judged
    ]
    return table(["claim", "of", "difference of", "mean", "over pairs", "over prompts", "pairs", "verdict"], rows)
