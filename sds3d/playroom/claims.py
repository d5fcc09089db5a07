"""What papers claim, judged on runs in the playroom that are paired over prompt and seed.

A claim says that one arm has a lower score than another. It is reproduced where the mean difference of at least
`PAIRS` pairs is surely below 0, refuted where it is surely above, and open otherwise. Surely means twice: by the 95 %
bootstrap interval over the pairs, and by that over the means of the prompts, because the runs of one prompt are not
independent of one another. The scores are continuous, and each is the larger the worse:

| score           | of a run                                                                                      |
|-----------------|-----------------------------------------------------------------------------------------------|
| two-facedness   | PSNR of the back to the true front less that to the true back, in dB; heads alone have it       |
| over-saturation | how far the mean chroma lies above the true one, 0 where it lies below                        |
| saturation      | how far the mean chroma lies from the true one                                                |
| shape           | 1 - silhouette IoU                                                                            |
| colour          | minus the PSNR inside the true mask, in dB                                                    |

Over-saturation alone would praise an asset of grey, so what is claimed of it is judged by both scores of chroma. A run
that failed, or whose asset overlaps the true one nowhere, has no score, and its pair is left out and counted as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .bootstrap import interval
from .runs import Figures

PAIRS = 24


def chroma(figures: Figures, score: Callable[[float], float]) -> float | None:
    error = figures.get("chroma_error")
    return None if error is None else score(error)


SCORES: dict[str, Callable[[Figures], float | None]] = {
    "two-facedness": lambda figures: figures.get("two_facedness"),
    "over-saturation": lambda figures: chroma(figures, lambda error: max(error, 0.0)),
    "saturation": lambda figures: chroma(figures, abs),
    "shape": lambda figures: 1 - figures["iou"] if "iou" in figures else None,
    "colour": lambda figures: -figures["psnr"] if "psnr" in figures else None,
}


@dataclass(frozen=True)
class Claim:
    """`lower` has a lower score than `higher`, both names of arms. source: whose claim it is."""

    text: str
    source: str
    lower: str
    higher: str
    score: str


Runs = Mapping[str, Mapping[tuple[str, int], Figures]]  # arm -> (prompt, seed) -> figures


@dataclass(frozen=True)
class Judged:
    """A claim and what the runs say. difference: mean of lower - higher; None where there is no pair.

    pairs: with a score on both sides. lost: made on both sides, without a score on one. over_pairs, over_prompts: the
    intervals of the difference, None for fewer than two values.
    """

    claim: Claim
    pairs: int
    lost: int
    difference: float | None
    over_pairs: tuple[float, float] | None
    over_prompts: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """ "reproduced", "refuted" or "open"."""
        if self.pairs < PAIRS or self.over_pairs is None or self.over_prompts is None:
            return "open"
        if max(self.over_pairs[1], self.over_prompts[1]) < 0:
            return "reproduced"
        return "refuted" if min(self.over_pairs[0], self.over_prompts[0]) > 0 else "open"

    def data(self) -> dict[str, Any]:
        """Everything as plain data."""
        claim = self.claim
        return {
            "claim": claim.text,
            "source": claim.source,
            "score": claim.score,
            "lower": claim.lower,
            "higher": claim.higher,
            "verdict": self.verdict,
            "pairs": self.pairs,
            "lost": self.lost,
            "difference": self.difference,
            "over_pairs": self.over_pairs,
            "over_prompts": self.over_prompts,
        }


def judge(claim: Claim, runs: Runs) -> Judged:
    """Compare the two arms over the prompts and seeds that both have made."""
    lower, higher = runs.get(claim.lower, {}), runs.get(claim.higher, {})
    both = sorted(lower.keys() & higher.keys())
    by_prompt: dict[str, list[float]] = {}
    for place in both:
        scores = [SCORES[claim.score](arm[place]) for arm in (lower, higher)]
        if scores[0] is not None and scores[1] is not None:
            by_prompt.setdefault(place[0], []).append(scores[0] - scores[1])
    differences = [difference for found in by_prompt.values() for difference in found]
    return Judged(
        claim,
        pairs=len(differences),
        lost=len(both) - len(differences),
        difference=mean(differences) if differences else None,
        over_pairs=interval(differences),
        over_prompts=interval([mean(found) for found in by_prompt.values()]),
    )


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
