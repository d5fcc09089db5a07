"""The laws that every guidance keeps, and the one identity that is this method's own: `pytest`, no weights needed."""

import torch
from sds3d_reconstruct import Reconstruct

from sds3d.core import Step
from sds3d.guidance.mix import Cfg
from sds3d.guidance.sds import Sds
from sds3d.schedules import Range
from sds3d.testing import GuidanceLaws, analytic_prior, conditions, views


class TestReconstruct(GuidanceLaws):
    guidance = Reconstruct()


def test_at_one_time_it_is_sds_in_the_target_form():
    prior = analytic_prior(dtype=torch.float64)
    image = torch.linspace(0, 1, 4 * 192, dtype=torch.float64).reshape(4, 8, 8, 3)
    sds = Sds("x0", "recon", clamp=False, mix=Cfg(3.0), t=Range(0.4, 0.4))
    one, other = (
        method(prior, views(image), conditions(prior, 4), Step(0), {}) for method in (Reconstruct(3.0, 0.4), sds)
    )
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.target, other.target, rtol=1e-9, atol=1e-9)
