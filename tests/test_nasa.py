"""Negative-away attention: its equation on the attention itself, its rows in the one forward, its guidance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

from sds3d.core import Condition, Guidance, Noised, Query, Step
from sds3d.diffusion import diffuse
from sds3d.guidance.csd import Csd
from sds3d.guidance.mix import Cfg
from sds3d.guidance.sds import Sds
from sds3d.guidance.wrap import Nasa
from sds3d.priors.multiview import JointAttention
from sds3d.priors.nasa import steered, text_attentions
from sds3d.priors.network import open_folder
from sds3d.schedules import Ramp
from sds3d.schema import convert
from sds3d.testing import ASKED, SIZE, GuidanceLaws, analytic_prior, conditions, views

F64 = torch.float64
EXACT = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """Random networks that see one picture, and four jointly."""
    root = tmp_path_factory.mktemp("nasa")
    size = {"channels": 3, "sample_size": SIZE}
    return {
        "one view": open_folder(tiny.save(root / "one", **size)),
        "four views": open_folder(tiny.save(root / "four", multiview=True, **size)),
    }


@pytest.fixture(params=["one view", "four views"])
def network(request, networks):
    return networks[request.param]


def picture(rows: int = 4) -> torch.Tensor:
    return Step(0).uniform("picture", rows * SIZE * SIZE * 3).reshape(rows, SIZE, SIZE, 3)


def asked(prior, rows: int = 4) -> tuple[Noised, dict[str, Condition]]:
    return diffuse(prior, prior.encode(picture(rows)), Step(1), (0.3, 0.9)), conditions(prior, rows)


def away(told: dict[str, Condition], scale: float, text: str = "negative") -> Condition:
    return replace(told["cond"], away=(told[text].text, scale))


def count_rows(prior) -> tuple[list[int], object]:
    rows: list[int] = []
    return rows, prior.unet.register_forward_hook(lambda module, given, output: rows.append(given[0].shape[0]))


# ---- the attention --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["the network's own", "joint"])
def attention(request):
    """One attention to a text, in float64, as a UNet names it."""
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    attention = Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4).double().requires_grad_(False)
    if request.param == "joint":
        attention.set_processor(JointAttention())
    return attention


def read(attention, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Z: what each head reads of the text, before the output layer, written out."""
    q, k, v = (
        layer(y).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for layer, y in ((attention.to_q, x), (attention.to_k, text), (attention.to_v, text))
    )
    share = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (share @ v).transpose(1, 2).flatten(2)


def test_an_attention_reads_away_from_the_negative_on_the_rows_that_ask(attention):
    """Z = Z+ - a Z- before the output layer; y_neg = y scales Z by 1 - a; a = 0 and unasked rows keep their bits."""
    draw = torch.Generator().manual_seed(1)
    x, text, other = (torch.randn(2, n, d, dtype=F64, generator=draw) for n, d in ((9, 8), (5, 6), (5, 6)))
    z_t, t = torch.zeros(2, 3, 3, 3), torch.full((2,), 0.5)
    unet = nn.ModuleDict({"block": nn.ModuleDict({"attn2": attention})})
    assert text_attentions(unet) == [attention]
    told = [Condition(text), *(Condition(text, away=(y, a)) for y, a in ((other, 0.3), (text, 0.3), (other, 0.0)))]
    with steered(unet, [Query(z_t, t, one) for one in told], [2] * 4):
        answers = attention(x.repeat(4, 1, 1), encoder_hidden_states=text.repeat(4, 1, 1)).split(2)
    plain = attention(x.repeat(4, 1, 1), encoder_hidden_states=text.repeat(4, 1, 1)).split(2)
    assert torch.equal(answers[0], plain[0]) and torch.equal(answers[3], plain[3])
    weight, bias = attention.to_out[0].weight, attention.to_out[0].bias
    z, negative = read(attention, x, text), read(attention, x, other)
    torch.testing.assert_close(plain[1], z @ weight.T + bias, **EXACT)
    torch.testing.assert_close(answers[1], (z - 0.3 * negative) @ weight.T + bias, **EXACT)
    torch.testing.assert_close(answers[2] - bias, 0.7 * (plain[2] - bias), **EXACT)
    assert (answers[1] - plain[1]).abs().max() > 0.01
    assert not attention._forward_hooks, "the network is as it was"


# ---- the prior ------------------------------------------------------------------------------------------------------


def test_a_prior_asks_away_within_the_one_forward(network):
    """a = 0 is the prior's own answer to the bit, other questions keep theirs, and no row is added."""
    x, told = asked(network)
    rows, handle = count_rows(network)
    plain = network.predict(x.ask(told, "cond", "uncond"))
    zero = network.predict(x.ask({**told, "cond": away(told, 0.0)}, "cond", "uncond"))
    steering = network.predict(x.ask({**told, "cond": away(told, 0.5)}, "cond", "uncond"))
    handle.remove()
    assert rows == [8, 8, 8] and network.reads_away
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    assert torch.equal(plain["uncond"], steering["uncond"])
    assert (plain["cond"] - steering["cond"]).abs().max() > 1e-4


def test_questions_that_differ_only_in_what_they_read_away_from_are_two(network):
    x, told = asked(network)
    named = {"a": away(told, 0.5), "b": away(told, 0.5), "c": away(told, 0.25), "d": away(told, 0.5, "uncond")}
    rows, handle = count_rows(network)
    eps = network.predict(x.ask({**told, **named}, "cond", *named))
    handle.remove()
    assert rows == [4 * 4] and torch.equal(eps["a"], eps["b"])
    assert not torch.equal(eps["a"], eps["c"]) and not torch.equal(eps["a"], eps["d"])
    for name in ("a", "c", "d"):  # asked together is asked alone
        alone = network.predict(x.ask(named, name))[name]
        torch.testing.assert_close(eps[name], alone, rtol=1e-4, atol=1e-5)


def test_the_answer_moves_with_the_scale_as_its_derivative_says(network):
    """Small scales steer in proportion: E(2a) - E(0) is twice E(a) - E(0), up to the curvature of the layers after."""
    x, told = asked(network)
    e = {a: network.predict(x.ask({"cond": away(told, a)}, "cond"))["cond"] for a in (0.0, 0.02, 0.04)}
    once, twice = e[0.02] - e[0.0], e[0.04] - e[0.0]
    assert (twice - 2 * once).norm() < 0.1 * twice.norm()


def test_an_adapters_rows_are_steered_through_its_own_layers(network):
    x, told = asked(network)
    lora = network.adapter(2, 1e-3, Step(0))
    query = Query(x.z_t, x.t, away(told, 0.5), lora)
    fresh = network.predict({"own": replace(query, adapter=None), "adapted": query})
    torch.testing.assert_close(fresh["own"], fresh["adapted"])
    with torch.no_grad():
        for layer in lora.layers.values():
            layer.up.copy_(0.3 * Step(1).normal("up", layer.up))
    together = network.predict({"own": replace(query, adapter=None), "adapted": query})
    alone = network.predict({"adapted": query})["adapted"]
    assert torch.equal(together["own"], fresh["own"])
    torch.testing.assert_close(together["adapted"], alone, rtol=1e-4, atol=1e-5)
    assert (alone - fresh["own"]).abs().max() > 1e-4


# ---- the guidance ---------------------------------------------------------------------------------------------------


def guide(guidance: Guidance, prior, progress: float = 0.0):
    step = Step(0, progress=progress)
    return guidance(prior, views(picture()), conditions(prior, 4), step, guidance.init(prior, step))


def test_the_guidance_inside_asks_cond_away_from_the_negative(network):
    """For SDS in its noise form G changes by w s (E_away - E_cond), and at a = 0 by nothing at all."""
    plain = Sds("eps", weighting="uniform", mix=Cfg(4.0))
    rows, handle = count_rows(network)
    base, same, steering = (guide(one, network).grad for one in (plain, Nasa(plain, 0.0), Nasa(plain, 0.5)))
    handle.remove()
    assert rows == [8, 8, 8] and torch.equal(base, same)
    told = conditions(network, 4)
    x = diffuse(network, network.encode(picture()), Step(0), (0.02, 0.98))
    eps = network.predict({**x.ask(told, "cond"), **x.ask({"away": away(told, 0.5)}, "away")})
    torch.testing.assert_close(steering - base, 4.0 * (eps["away"] - eps["cond"]), rtol=1e-3, atol=1e-5)


def test_the_scale_may_follow_progress(networks):
    prior = networks["one view"]
    ramp = Nasa(Csd(), Ramp(0.0, 0.5))
    assert torch.equal(guide(ramp, prior).grad, guide(Csd(), prior).grad)
    assert torch.equal(guide(ramp, prior, 1.0).grad, guide(Nasa(Csd(), 0.5), prior, 1.0).grad)


def test_it_says_before_the_run_what_it_lacks(networks):
    names = frozenset({"cond", "uncond", "negative"})
    Nasa().check(networks["one view"], names)
    with pytest.raises(ValueError, match='NASA needs the condition "negative"'):
        Nasa().check(networks["one view"], names - {"negative"})
    with pytest.raises(ValueError, match="NASA steers a network's attention"):
        Nasa().check(analytic_prior(), frozenset(ASKED))
    with pytest.raises(ValueError, match="scale must be a finite number of at least 0"):
        Nasa(scale=Ramp(0.1, -0.1))


def test_a_recipe_can_write_it():
    data = {"kind": "nasa", "guidance": {"kind": "csd"}, "scale": 0.2}
    assert convert(data, Guidance, "guidance.main", {}) == Nasa(Csd(), 0.2)


class TestNasa(GuidanceLaws):
    guidance = Nasa(Sds("eps"), 0.5)

    @pytest.fixture(params=["one view", "four views"])
    def prior(self, request, networks):
        return networks[request.param]
