"""docs/methods.md: every method's paper, equation, file, cost, needs and figures, from the code and the results.

    python -m sds3d.methods docs/methods.md

Papers and equations are those of the docstrings. Costs are counted and needs are tried out on a prior that is known
exactly; figures are read from `benchmarks/results/bench-guidance.json`, which `sds3d bench guidance` writes.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import plugins
from .core import Guidance, Learner, Prior, Step
from .cost import ASKED, exact_prior, spend
from .files import write
from .guidance.csd import Csd
from .guidance.sds import Sds
from .guidance.wrap import Blend, Share
from .playroom.bench_tables import cell, claims, table
from .priors.wrapped import Wrapped

RESULTS = Path("benchmarks/results/bench-guidance.json")
STEPS = 10  # enough for a method that asks more at first
WHOLE = {"guidance": Blend((Share(Sds()), Share(Csd())))}  # what has no default to be measured with
SHOWN = ("iou", "psnr", "two_facedness", "saturation_error", "haze", "seconds")
NOT_YET = "not yet measured"
YEAR = r"(?:19|20)\d\d\b"
CITED = re.compile(rf"\(([^()]*\b{YEAR}[^()]*)\)|([A-Z]\w+(?: et al\.)? {YEAR} \(arXiv [\d.]+\))")
SENTENCE = re.compile(r"(?<! al)\. ")


class Untrained(Wrapped):
    """A prior that offers no adapter."""

    def adapter(self, rank: int, lr: float, step: Step) -> Learner | None:
        return None


@dataclass(frozen=True)
class Kind:
    """A kind of a family, as the code has it: where it is, and the docstrings of its module and its class."""

    name: str
    place: str

    @property
    def file(self) -> str:
        return self.place.partition(":")[0].replace(".", "/") + ".py"

    @property
    def class_name(self) -> str:
        return self.place.partition(":")[2]

    @property
    def doc(self) -> str:
        """The module's docstring, read without importing it."""
        source = Path(__file__).parent.parent / self.file
        return ast.get_docstring(ast.parse(source.read_text())) or ""

    def rows(self) -> list[list[str]]:
        """The cells of the docstring's tables, row by row."""
        lines = [line for line in self.doc.splitlines() if line.startswith("| ")]
        return [[part.strip() for part in re.split(r" +\|(?: +|$)", line[1:]) if part.strip()] for line in lines]

    def own_rows(self) -> list[list[str]]:
        """Rows that are about this class alone: a module of several has one for each, or names its fields."""
        return [row for row in self.rows() if any(re.match(rf"{self.class_name}\b", part) for part in row[:2])]

    def equation(self) -> str:
        """The last cell of the rows that are about this class, else of the gradient G, each form by its name.

        Where a module has neither, the first sentence of the class.
        """
        of_class = [CITED.sub("", row[-1]).strip() for row in self.own_rows()]
        gradient = [row for row in self.rows() if re.fullmatch(r"G(, \w+)?", row[0])]
        named = [f"{row[0].partition(', ')[2]}: {row[2]}" if ", " in row[0] else row[2] for row in gradient]
        return "; ".join(of_class or named) or self.about

    @property
    def about(self) -> str:
        """The first sentence of the class."""
        return (plugins.fetch(self.place).__doc__ or "").partition(". ")[0].split("\n\n")[0]

    def paper(self, alone: bool) -> str:
        """The first citation of the docstring; where it does not stand `alone`, that of a row or sentence naming it."""
        text = " ".join(line for line in self.doc.splitlines() if not line.startswith("|"))
        sentences = [part for part in SENTENCE.split(text) if bare(self.name) in bare(part)]
        about = [text] if alone else [*(" ".join(row) for row in self.own_rows()), *sentences]
        found = next((match for text in about if (match := CITED.search(text))), None)
        return "-" if found is None else found[1] or found[2]


def bare(text: str) -> str:
    """A text in which a name is found however it is written: perp_neg, Perp-Neg."""
    return re.sub(r"[-_ ]", "", text.lower())


def kinds(family: str) -> list[Kind]:
    return [Kind(name, place) for name, place in plugins.KINDS[family].items()]


def example(kind: Kind) -> Guidance:
    """A guidance with its defaults."""
    cls = plugins.fetch(kind.place)
    return next((whole for whole in WHOLE.values() if type(whole) is cls), None) or cls()


def cost(guidance: Guidance) -> tuple[str, str]:
    """Forwards and rows a view of a step; of the first one too where it asks more."""
    steps = list(spend(guidance, STEPS))
    first, last = steps[0], steps[-1]
    if first.rows == last.rows:
        return f"{last.forwards}", f"{last.rows:g}"
    return f"{last.forwards} (first {first.forwards})", f"{last.rows:g} (first {first.rows:g})"


def needs(guidance: Guidance) -> str:
    """What it refuses to run without, tried out one by one, and whether it walks noise backwards.

    Of a guidance that wants what only a network has, what it says.
    """
    prior = exact_prior()
    known = frozenset(ASKED)

    def refused(given: Prior, names: frozenset[str]) -> str | None:
        try:
            guidance.check(given, names)
        except ValueError as error:
            return str(error)
        return None

    why = refused(prior, known)
    if why is not None:
        return why
    found = [name for name in ASKED if refused(prior, known - {name})]
    found += ["an adapter"] if refused(Untrained(prior), known) else []
    found += ["inversion"] if next(spend(guidance, 1)).earliest <= float(prior.snap(torch.zeros(1))) else []
    return ", ".join("a frozen source" if name == "source" else name for name in found)


def measured(name: str, results: Mapping[str, Any]) -> list[str]:
    """The figures of a method from the best list of runs that it is on, else that there are none."""
    for title, by_arm in results.get("tables", {}).items():
        if name in by_arm and title != "claims":
            return [title, str(by_arm[name]["runs"]), *(cell(by_arm[name], column) for column in SHOWN)]
    why = results.get("refused", {}).get(name)
    return [NOT_YET if why is None else "cannot run alone", *["-"] * (len(SHOWN) + 1)]


def page(results: Mapping[str, Any]) -> str:
    """The whole page. results: what the benchmark wrote, or nothing."""
    guidances, mixes = kinds("guidance"), kinds("mix")
    shared = [kind.file for kind in (*guidances, *mixes)]
    rows = []
    for kind in guidances:
        guidance = example(kind)
        own = kind.file != "sds3d/guidance/wrap.py"
        place = f"[{Path(kind.file).name}](../{kind.file})"
        rows.append([f"`{kind.name}`", kind.paper(own), kind.equation(), place, *cost(guidance), needs(guidance)])
    mixed = [
        [
            f"`{kind.name}`",
            kind.paper(shared.count(kind.file) == 1),
            kind.equation(),
            f"[{Path(kind.file).name}](../{kind.file})",
            asked(kind),
        ]
        for kind in mixes
    ]
    figures = [[f"`{kind.name}`", *measured(kind.name, results)] for kind in guidances]
    docs = {kind.file: kind.doc for kind in (*guidances, *mixes)}
    heads = ["method", "runs of", "runs", "silhouette IoU", "colour, dB", "two-faced, dB", "saturation error", "haze"]
    parts = [
        "# Methods",
        "Written by `python -m sds3d.methods docs/methods.md` from the code and the results; do not edit it by hand.",
        "## What each asks",
        "G is the gradient at the latent x of the views; its symbols are told below, file by file. Forwards and rows "
        "a view are those of a step, training included, counted with the default numbers. The needs are what a method "
        "refuses to run without: conditions by name, an adapter of the prior's network, and the prior's DDIM "
        "inversion, which no video prior has.",
        table(["kind", "paper", "G", "file", "forwards", "rows a view", "needs"], rows),
        "## Mixes",
        "How the predictions of a method become one.",
        table(["kind", "paper", "equation", "file", "asks"], mixed),
        "## Measured",
        "In the playroom, against exact scenes: see [the benchmark](../sds3d/playroom/guidance_lists.py) and "
        "`sds3d bench guidance`. In brackets: 95 % bootstrap intervals over runs, where there are several seeds.",
        table([*heads, "seconds"], figures),
        "## Claims of the papers",
        "What became of them, and why, is told in [claims.md](claims.md).",
        claims(results["claims"]) if results.get("claims") else f"{NOT_YET.capitalize()}.",
        "## The equations",
        *(f"### {file.removeprefix('sds3d/guidance/')}\n\n{doc}" for file, doc in docs.items()),
    ]
    return "\n\n".join(parts) + "\n"


def asked(kind: Kind) -> str:
    """The conditions that a mix asks with its default numbers, one row a view for each."""
    return ", ".join(plugins.fetch(kind.place)().names)


def read_results(path: Path = RESULTS) -> dict[str, Any]:
    """What the benchmark wrote, or nothing where it has not run."""
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m sds3d.methods docs/methods.md")
    write(Path(sys.argv[1]), page(read_results()).encode())


if __name__ == "__main__":
    main()
