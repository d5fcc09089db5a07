"""SDS of a prior that edits pictures by instruction (InstructPix2Pix, Brooks et al. 2022, arXiv 2211.09800).

| symbol   | variable | equation                                                                             |
|----------|----------|--------------------------------------------------------------------------------------|
| E_I, E_T | eps      | told the source's picture at the same camera; told it and the instruction            |
| E        | mixed    | E_0 + s_I (E_I - E_0) + s_T (E_T - E_I); see `mix.Instruct`                          |
| G        | grad     | w (E - eps), or its target form, as SDS has it                                       |

The source's picture is to hold the identity; a region (`local`) is needed as far as a prior copies it badly, as the
embedded one does. As a guidance of 3D it was first used by distilling datasets (Instruct-NeRF2NeRF, Haque et al. 2023,
arXiv 2303.12789); HeadSculpt's code has this score as an alternative to its own (scales 100 and 20, read there).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core import Condition, Guided, Learner, Mix, Prior, Step, Views
from .mix import Instruct
from .sds import Sds
from .weights import WEIGHTS


@dataclass(frozen=True)
class Ip2p(Sds):
    """Descend the score of an edit prior; three network rows for each view."""

    mix: Mix = Instruct()

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        if not getattr(prior, "reads_source", False):
            raise ValueError(
                "ip2p needs a prior that is shown the source and reads instructions: --prior playroom-edit."
            )
        if "source" not in names or "instruct" not in names:
            raise ValueError("ip2p edits an asset by an instruction, and this run has none; use: sds3d edit.")
        super().check(prior, names)

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views.

        parts: "source" = w (E_I - eps), which the source itself satisfies; "edit" = w (E - E_I).
        """
        z = prior.encode(views.image)
        x = self.noised(prior, z, conditions, step)
        eps = prior.predict(x.ask(conditions, *self.mix.names))
        mixed = self.mix(eps, conditions, x, prior.group)
        w = WEIGHTS[self.weighting](x.alpha, x.sigma)
        parts = {"source": w * (eps["image"] - x.eps), "edit": w * (mixed - eps["image"])}
        return self.descend(prior, z, x, mixed, parts)
