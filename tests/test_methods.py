"""docs/methods.md is what the code and the results say, and says what holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sds3d import methods, plugins

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "methods.md"
FIGURES = {
    "runs": 36,
    "failed": 0,
    "steps": 200,
    "seeds": 3,
    "iou": {"mean": 0.8125, "interval": [0.75, 0.875], "of": 36},
}
RESULTS = {
    "tables": {
        "final": {"sds": FIGURES},
        "screen, equal rows": {"csd": {**FIGURES, "runs": 4, "seeds": 1}},
        "claims": {},
    },
    "refused": {"nfsd": "NFSD needs more."},
}


@pytest.fixture(scope="module")
def made() -> str:
    return methods.page(methods.read_results(ROOT / methods.RESULTS))


def cells(text: str, name: str) -> list[list[str]]:
    """The rows of a kind, in every table of the page."""
    rows = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    return [row.strip("| ").split(" | ") for row in rows]


def test_the_page_is_not_stale(made: str) -> None:
    assert PAGE.read_text() == made, "run: python -m sds3d.methods docs/methods.md"


def test_every_kind_is_on_the_page_and_every_link_leads_somewhere(made: str) -> None:
    for family, tables in (("guidance", 2), ("mix", 1)):
        for name in plugins.KINDS[family]:
            assert len(cells(made, name)) == tables, name
    for link in re.findall(r"\]\(([^)]+)\)", made):
        assert (PAGE.parent / link).resolve().is_file(), link


def test_every_method_of_a_paper_names_it(made: str) -> None:
    ours = {"normalise", "average", "blend", "pull", "local"}
    for name in plugins.KINDS["guidance"].keys() - ours:
        assert re.search(r"arXiv \d{4}\.\d{5}", cells(made, name)[0][1]), name
    papers = {name: cells(made, name)[0][1] for name in plugins.KINDS["mix"]}
    assert papers["cfg"] == "Ho, Salimans 2022"
    assert papers["perp_neg"].startswith("Armandpour et al. 2023 (arXiv 2304.04968")
    assert papers["rescale"].startswith("Lin et al. 2024 (arXiv 2305.08891")


def test_equations_are_those_of_the_docstrings(made: str) -> None:
    equations = {name: cells(made, name)[0][2] for name in ("sds", "csd", "clip", "alone", "repel", "blend")}
    assert equations == {
        "sds": "eps: w (E - eps); x0: lam (x - X) with lam = w alpha / sigma",
        "csd": "w (c_1 E_c + c_3 E_0 + c_2 E_n + c_4 eps)",
        "clip": "clamp(G, -c, c), element by element",
        "alone": "One prediction as it is",
        "repel": "the same away from the prompt, E_base - s (E_cond - E_base)",
        "blend": "sum_i w_i G_i, with weights over progress",
    }
    assert not any(row[2] in ("", "-") for name in plugins.KINDS["guidance"] for row in cells(made, name)[:1])


def test_costs_and_needs_are_those_that_the_methods_tell(made: str) -> None:
    told = {name: cells(made, name)[0][4:] for name in ("sds", "csm", "vsd", "f_distill", "dds", "nfsd")}
    assert told == {
        "sds": ["1", "2", "cond, uncond"],
        "csm": ["5", "6", "cond, uncond, inversion"],
        "vsd": ["2", "4", "cond, cond_plain, uncond, an adapter"],
        "f_distill": ["6 (first 26)", "8 (first 48)", "cond, cond_plain, uncond, an adapter"],
        "dds": ["1", "4", "cond, uncond, a frozen source"],
        "nfsd": ["1", "3", "cond, uncond, negative"],
    }


def test_figures_are_shown_where_there_are_some_and_said_to_be_missing_elsewhere() -> None:
    assert methods.measured("sds", RESULTS)[:3] == ["final", "36", "0.812 [0.750, 0.875]"]
    assert methods.measured("csd", RESULTS)[:3] == ["screen, equal rows", "4", "0.812"]
    assert methods.measured("nfsd", RESULTS)[0] == "cannot run alone"
    assert methods.measured("bsd", RESULTS)[0] == methods.measured("bsd", {})[0] == methods.NOT_YET
    assert {len(methods.measured(name, RESULTS)) for name in ("sds", "nfsd", "bsd")} == {len(methods.SHOWN) + 2}


def test_where_nothing_was_measured_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert methods.read_results(tmp_path / "none.json") == {}
