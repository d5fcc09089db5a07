"""Networks that are trained during a run: what they are when fresh, what training moves, and that a run can resume."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import tiny
import torch
from small_run import priors as small_priors
from small_run import recipe
from test_engine import RED, Keep, same

from sds3d.cameras import orbit
from sds3d.core import Condition, Learner, Noised, Query, Step
from sds3d.diffusion import diffuse
from sds3d.engine import Saved, run
from sds3d.guidance.critic import Critic
from sds3d.guidance.f_distill import FDistill
from sds3d.guidance.fake import Fake
from sds3d.guidance.mix import Cfg
from sds3d.guidance.vsd import Vsd
from sds3d.priors.lora import PROJECTIONS, attention_layers
from sds3d.priors.network import NetworkPrior, open_folder
from sds3d.terms import Guide
from sds3d.testing import analytic_prior, views

PICTURE = Step(0).uniform("picture", 8 * 16 * 16 * 3).reshape(8, 16, 16, 3)
CAMERAS = orbit([10.0 + 90 * i for i in range(8)], 15.0, 16)
POSE = CAMERAS.c2w.flatten(1)


@pytest.fixture(scope="module")
def priors(tmp_path_factory):
    """An exact prior and random networks: one view (eps), four with cameras (clean picture), the same as one view."""
    root = tmp_path_factory.mktemp("learners")
    joint = tiny.save(root / "views", channels=12, multiview=True, prediction="sample", addition_embed_type="text",
                      addition_embed_type_num_heads=2)  # fmt: skip
    return {
        "analytic": analytic_prior(),
        "pixel": open_folder(tiny.save(root / "pixel", channels=12)),
        "views": open_folder(joint),
        "single": open_folder(joint, single=True),
    }


NETWORKS = ("pixel", "views", "single")
ALL = pytest.mark.parametrize("name", ["analytic", *NETWORKS])
EACH_NETWORK = pytest.mark.parametrize("name", NETWORKS)


def ask(prior, rows: int = 4) -> tuple[Noised, Condition]:
    """Noised pictures, and a condition that has a camera whether or not the prior is told one."""
    prompt = "red" if prior.size == 8 else "a red cube"
    condition = prior.condition(prior.text([prompt]).expand(rows, -1, -1), CAMERAS[:rows])
    x = diffuse(prior, prior.encode(PICTURE[:rows]), Step(0), (0.2, 0.8))
    return x, replace(condition, camera=POSE[:rows] if condition.camera is None else condition.camera)


def adapter(prior, lr: float = 1e-2, seed: int = 0, rank: int = 2) -> Learner:
    return prior.adapter(rank, lr, Step(seed))


def train(learner: Learner, x: Noised, condition: Condition, steps: int) -> list[float]:
    target = x.z_t.flip(0)
    return [learner.fit((learner(Query(x.z_t, x.t, condition)) - target).square().mean()) for _ in range(steps)]


def shaken(learner: Learner) -> Learner:
    """The learner with every weight moved at random, so that nothing in it is zero."""
    for name, weight in learner.named_parameters():
        weight.data.add_(0.1 * Step(9).normal(name, weight[None])[0])
    return learner


# ---- laws of every adapter ------------------------------------------------------------------------------------------


@ALL
def test_a_fresh_adapter_is_the_prior_exactly(priors, name):
    prior = priors[name]
    x, condition = ask(prior)
    told = condition if name in ("analytic", "views") else replace(condition, camera=None)
    base = prior.predict({"base": Query(x.z_t, x.t, told)})["base"]
    for camera in (told.camera, None):
        plain = prior.predict({"base": Query(x.z_t, x.t, replace(told, camera=camera))})["base"]
        fresh = prior.predict({"fake": Query(x.z_t, x.t, replace(condition, camera=camera), adapter(prior))})["fake"]
        assert torch.equal(fresh, plain)
    if name != "views":  # what the network itself is not told changes nothing in a fresh adapter
        assert torch.equal(prior.predict({"fake": Query(x.z_t, x.t, condition, adapter(prior))})["fake"], base)


@ALL
def test_training_lowers_the_loss_and_moves_the_adapter_alone(priors, name):
    prior = priors[name]
    x, condition = ask(prior)
    learner = adapter(prior)
    frozen = copy.deepcopy(prior.unet.state_dict()) if name != "analytic" else {"means": prior.means.clone()}
    before, weights = prior.predict({"base": Query(x.z_t, x.t, condition)})["base"], learner.state()
    losses = train(learner, x, condition, 8)
    assert losses[-1] < losses[0]
    now = prior.unet.state_dict() if name != "analytic" else {"means": prior.means}
    assert all(torch.equal(now[key], frozen[key]) for key in frozen)
    assert torch.equal(prior.predict({"base": Query(x.z_t, x.t, condition)})["base"], before)
    moved = {key for key, weight in weights.items() if not torch.equal(learner.state()[key], weight)}
    assert len(moved) > len(weights) / 3  # attention to a text of one row moves late, as its up is zero at first


@ALL
def test_training_reaches_neither_the_latents_nor_the_network(priors, name):
    prior = priors[name]
    x, condition = ask(prior)
    learner = adapter(prior)
    eps = learner(Query(x.z_t, x.t, condition))
    assert eps.requires_grad and eps.dtype == x.z_t.dtype
    learner.fit(eps.square().mean())
    assert all(weight.grad is None for weight in learner.parameters())
    if name != "analytic":
        assert all(weight.grad is None and not weight.requires_grad for weight in prior.unet.parameters())
        assert not any(module._forward_hooks for module in prior.unet.modules())


@ALL
def test_a_resumed_training_ends_in_the_same_bits(priors, name):
    prior = priors[name]
    x, condition = ask(prior)
    whole, resumed, amnesic = adapter(prior), adapter(prior, seed=1), adapter(prior, seed=2)
    train(whole, x, condition, 2)
    kept = {key: tensor.clone() for key, tensor in whole.state().items()}
    train(whole, x, condition, 2)
    resumed.load(kept)
    assert same(resumed.state(), kept)
    train(resumed, x, condition, 2)
    assert same(whole.state(), resumed.state())
    amnesic.load({key: tensor for key, tensor in kept.items() if key.startswith(("weight.", "buffer."))})
    train(amnesic, x, condition, 2)
    assert not same(whole.state(), amnesic.state()), "the moments matter"


@ALL
def test_one_seed_is_one_adapter(priors, name):
    prior = priors[name]
    before = torch.get_rng_state()
    one, two, other = (shaken(adapter(prior, seed=seed)).state() for seed in (0, 0, 1))
    assert same(one, two) and torch.equal(torch.get_rng_state(), before)
    assert name == "analytic" or not same(one, other)  # the exact prior's adapter draws nothing


@ALL
def test_what_does_not_fit_is_refused_before_anything_changes(priors, name):
    prior = priors[name]
    learner = shaken(adapter(prior))
    state = learner.state()
    key = next(iter(state))
    with pytest.raises(ValueError, match="there is none"):
        adapter(prior).load({k: v for k, v in state.items() if k != key})
    with pytest.raises(ValueError, match="there is one of"):
        adapter(prior).load({**state, key: state[key][..., :-1]})
    with pytest.raises(ArithmeticError, match="is nan"):
        learner.fit(next(learner.parameters()).sum() * float("nan"))
    assert same(learner.state(), state)
    with pytest.raises(ValueError, match="learning rate"):
        adapter(prior, lr=0.0)


# ---- low-rank adapters ----------------------------------------------------------------------------------------------


def merged(prior: NetworkPrior, learner: Learner, camera: torch.Tensor | None) -> NetworkPrior:
    """The prior with an adapter written into the weights of a copy of its network; one camera for all rows."""
    unet = copy.deepcopy(prior.unet)
    for name, layer in attention_layers(unet).items():
        low = learner.layers[name.replace(".", "/")]
        layer.weight.data += low.up @ low.down
    if learner.camera is not None and camera is not None:
        unet.time_embedding.linear_2.bias.data += learner.camera(camera)[0]
    return replace(prior, unet=unet)


@EACH_NETWORK
def test_an_adapter_is_a_low_rank_change_of_the_weights(priors, name):
    prior = priors[name]
    x, condition = ask(prior)
    if not prior.sees_camera:
        condition = replace(condition, camera=POSE[:1].expand(4, -1))
    learner = shaken(adapter(prior))
    own = condition if prior.sees_camera else replace(condition, camera=None)
    with torch.no_grad():
        expected = merged(prior, learner, condition.camera).forward([Query(x.z_t, x.t, own)])[0]
        base = prior.forward([Query(x.z_t, x.t, own)])[0]
    given = prior.predict({"fake": Query(x.z_t, x.t, condition, learner)})["fake"]
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3 * float(base.abs().max()))
    assert (given - base).abs().max() > 1e-2


@EACH_NETWORK
def test_it_acts_on_every_projection_of_every_attention(priors, name):
    prior = priors[name]
    layers = attention_layers(prior.unet)
    assert {end for end in PROJECTIONS if any(key.endswith(end) for key in layers)} == set(PROJECTIONS)
    attentions = {key for key, module in prior.unet.named_modules() if hasattr(module, "to_q")}
    assert len(layers) == 4 * len(attentions) > 0
    learner = adapter(prior, rank=3)
    assert all(low.down.shape[0] == low.up.shape[1] == 3 for low in learner.layers.values())
    spread = torch.cat([low.down.flatten() for low in learner.layers.values()]).std() * 3
    assert 0.9 < spread < 1.1  # deviation 1 / rank


@EACH_NETWORK
def test_a_network_and_its_adapters_share_one_forward(priors, name):
    """Two adapters and the network itself: one forward, and none disturbs another's rows."""
    prior = priors[name]
    x, condition = ask(prior)
    one, two = shaken(adapter(prior)), shaken(adapter(prior, seed=1))
    told = condition if prior.sees_camera else replace(condition, camera=None)
    questions = {
        "base": Query(x.z_t, x.t, told),
        "one": Query(x.z_t, x.t, condition, one),
        "two": Query(x.z_t, x.t, condition, two),
        "again": Query(x.z_t, x.t, condition, one),
    }
    rows: list[int] = []
    hook = prior.unet.register_forward_hook(lambda module, given, output: rows.append(len(given[0])))
    together = prior.predict(questions)
    hook.remove()
    assert rows == [12] and torch.equal(together["one"], together["again"])
    for key, query in questions.items():
        torch.testing.assert_close(together[key], prior.predict({key: query})[key], rtol=1e-3, atol=1e-4)
    fresh = {**questions, "one": replace(questions["one"], adapter=adapter(prior)), "again": questions["base"]}
    fresh["two"] = replace(questions["two"], adapter=adapter(prior))
    assert torch.equal(prior.predict(fresh)["base"], together["base"])  # bit for bit, whatever stands beside it


def test_groups_keep_their_adapter_to_themselves(priors):
    """Of two groups of four views one asks the adapter; joint attention must not carry it to the other."""
    prior = priors["views"]
    x, condition = ask(prior, 8)
    whole = prior.predict({"fake": Query(x.z_t, x.t, condition, shaken(adapter(prior)))})["fake"]
    first, second = (
        Query(x.z_t[part], x.t[part], Condition(condition.text[part], condition.camera[part]))
        for part in (slice(0, 4), slice(4, 8))
    )
    mixed = prior.predict({"base": first, "fake": replace(second, adapter=shaken(adapter(prior)))})
    torch.testing.assert_close(mixed["base"], prior.predict({"base": first})["base"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mixed["fake"], whole[4:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["pixel", "single", "views"])
def test_an_adapter_learns_its_cameras(priors, name):
    """Two targets for one picture, told apart by the camera alone."""
    prior = priors[name]
    x, condition = ask(prior)
    still = Noised(*(part[:1].expand_as(part) for part in (x.z_t, x.t, x.eps, x.alpha, x.sigma)))
    learner = shaken(adapter(prior, lr=3e-3))
    told, turned = (Query(still.z_t, still.t, replace(condition, camera=c)) for c in (condition.camera, POSE[4:]))
    turned = replace(turned, condition=replace(turned.condition, camera=told.condition.camera.flip(0)))
    answers = prior.predict({"told": replace(told, adapter=learner), "turned": replace(turned, adapter=learner)})
    torch.testing.assert_close(answers["told"], answers["turned"].flip(0), rtol=1e-3, atol=1e-4)
    assert (answers["told"] - answers["turned"]).abs().max() > 1e-4
    silent = Query(still.z_t, still.t, replace(condition, camera=None), learner)
    assert (prior.predict({"silent": silent})["silent"] - answers["told"]).abs().max() > 1e-4
    assert (learner.camera is None) == (name == "views")


def test_a_network_without_attention_offers_no_adapter(tmp_path):
    plain = {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "mid_block_type": None,
    }
    prior = open_folder(tiny.save(tmp_path / "plain", channels=3, **plain))
    assert prior.adapter(4, 1e-3, Step(0)) is None
    with pytest.raises(ValueError, match="offers none"):
        Vsd().check(prior, frozenset({"cond", "uncond", "cond_plain"}))


def test_numbers_that_make_no_adapter_are_refused(priors):
    with pytest.raises(ValueError, match="rank of an adapter must be at least 1, given 0"):
        adapter(priors["pixel"], rank=0)


# ---- the exact prior's adapter --------------------------------------------------------------------------------------


def test_a_fitted_mixture_is_the_score_of_the_moved_mixture():
    prior = analytic_prior(dtype=torch.float64)
    learner = shaken(prior.adapter(4, 1e-2, Step(0)))
    camera = POSE[:1].double()
    z_t = Step(3).normal("z", prior.means[:1])
    text = prior.text(["red"])
    for told, scale in ((None, learner.log_scale[0]), (camera, learner.log_scale[1])):
        shift = learner.shift + (0 if told is None else (told[0, :, None, None, None] * learner.by_camera).sum(0))
        moved = replace(prior, means=(prior.means + shift).detach(), std=prior.std * scale.exp().item())
        query = Query(z_t, torch.tensor([0.4]), Condition(text, told))
        torch.testing.assert_close(learner(query).detach(), moved.eps(query), rtol=1e-9, atol=1e-9)


def test_a_fitted_mixture_reads_the_cameras_it_was_made_for():
    prior = replace(analytic_prior(), camera_size=5)
    x = diffuse(prior, prior.means, Step(0), (0.2, 0.8))
    learner = prior.adapter(4, 1e-2, Step(0))
    assert learner(Query(x.z_t, x.t, Condition(prior.text(["", ""]), torch.eye(5)[:2]))).shape == x.z_t.shape
    with pytest.raises(ValueError, match="reads 5 numbers a camera, given 16"):
        learner(Query(x.z_t, x.t, Condition(prior.text(["", ""]), POSE[:2])))


# ---- the critic -----------------------------------------------------------------------------------------------------


def critic(samples: int = 8, lr: float = 1e-2) -> Critic:
    return Critic([3, 8, 8], samples, lr, torch.zeros(()), Step(0))


def test_a_fresh_critic_finds_both_as_likely():
    prior, one = analytic_prior(), critic()
    x, condition = ask(prior)
    assert torch.equal(one.ratio(Query(x.z_t, x.t, condition), 1), torch.ones(4))


def test_a_critic_learns_which_is_which_and_its_ratio_is_bounded():
    prior, one = analytic_prior(std=0.05), critic()
    condition = Condition(prior.text(["red"]).expand(8, -1, -1))
    samples = prior.means[:1] + 0.05 * Step(1).normal("s", torch.zeros(8, 3, 8, 8))
    renders = prior.means[1:] + 0.05 * Step(2).normal("r", torch.zeros(8, 3, 8, 8))
    one.keep(samples)
    for index in range(60):
        one.judge(prior, renders, condition, Step(0, index=index))
    low = torch.full((8,), 0.1)
    ratios = [
        one.ratio(Query(diffuse(prior, z, Step(5), (0.1, 0.1)).z_t, low, condition), 1) for z in (samples, renders)
    ]
    assert (ratios[0] > 2).all() and (ratios[1] < 0.5).all()
    assert ratios[0].max() <= 20 and ratios[1].min() >= 0.1
    joint = one.ratio(Query(torch.cat([samples[:4], renders[:4]]), low, condition), 4)
    assert len(joint.unique()) == 2 and torch.equal(joint[:4], joint[:1].expand(4))


def test_the_best_critic_is_the_density_ratio(unchecked):
    """One pixel, two Gaussians of one spread: log p - log q is linear in x_t, and known at every time."""
    std, away, rows = 0.5, 0.3, 512
    prior = replace(analytic_prior(), means=torch.zeros(1, 3, 1, 1), names=("it",), std=std)
    one = Critic([3, 1, 1], rows, 5e-3, torch.zeros(()), Step(0))
    like = torch.zeros(rows, 3, 1, 1)
    condition = Condition(prior.text([""]).expand(rows, -1, -1))
    one.keep(away + std * Fast(1).normal("p", like))
    for index in range(200):
        step = Fast(0, index=index)
        one.judge(prior, -away + std * step.normal("q", like), condition, step)
    z_t = torch.linspace(-0.6, 0.6, 7)[:, None, None, None].expand(-1, 3, 1, 1)
    for time in (0.2, 0.5, 0.8):
        t = torch.full((7,), time)
        alpha, sigma = prior.noise_level(t)
        expected = 2 * alpha * away / (alpha**2 * std**2 + sigma**2) * z_t.sum(1, keepdim=True)
        given = one.ratio(Query(z_t, t, Condition(prior.text([""]).expand(7, -1, -1))), 1).log()
        bounded = expected.flatten().clamp(math.log(0.1), math.log(20))
        torch.testing.assert_close(given, bounded, rtol=0, atol=0.3)


class Fast(Step):
    """A step whose rows share one stream, which is quicker than a stream for each."""

    def normal(self, name, like, fixed=False):
        return torch.randn(like.shape, generator=self._generator(name, 0, fixed)).to(like)

    def uniform(self, name, n, fixed=False):
        return torch.rand(n, generator=self._generator(name, 0, fixed))


def test_a_critic_keeps_its_samples_and_its_mean_in_its_state():
    one, other = critic(samples=6), critic(samples=6)
    one.keep(torch.ones(4, 3, 8, 8))
    assert not one.full
    one.keep(2 * torch.ones(4, 3, 8, 8))
    assert one.full and one.reals[:, 0, 0, 0].tolist() == [1, 1, 1, 1, 2, 2]
    one.average(torch.tensor([1.0, 3.0]), keep=0.9)
    other.load(one.state())
    assert same(one.state(), other.state()) and other.full and int(other.seen) == 1


def test_h_is_taken_over_its_mean_so_far():
    one, h = critic(), torch.tensor([1.0, 3.0])
    assert torch.equal(one.relative(h, 0.9), torch.ones(2))
    for value in (2.0, 4.0):
        one.average(torch.tensor([value]), keep=0.9)
    mean = (0.1 * 0.9 * 2 + 0.1 * 4) / (1 - 0.9**2)  # without the bias toward the zero it began with
    torch.testing.assert_close(one.relative(h, 0.9), h / mean)


# ---- in a run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "guidance",
    [
        Vsd(Cfg(2.0), fake=Fake(lr=1e-2, camera_dropout=0.5)),
        FDistill(samples=4, sample_steps=2, fake=Fake(updates=1)),
    ],
    ids=["vsd", "f-distill"],
)
def test_a_resumed_run_ends_in_the_same_bits(guidance):
    made = recipe(4, guidance={"it": Guide(guidance)})
    keep = Keep()
    whole = run(made, RED, small_priors(), watchers=(keep,))
    learnt = [name for name in keep.states[-1].tensors if name.startswith("learners/it/fake/first.")]
    assert whole.done and learnt
    for saved in keep.states[1:3]:
        last = Keep()
        run(made, RED, small_priors(), watchers=(last,), saved=saved)
        assert same(last.states[-1].tensors, keep.states[-1].tensors)
    saved = keep.states[1]
    first = run(
        made, RED, small_priors(), watchers=(fresh := Keep(),), saved=Saved("shape", 2, forgotten(saved.tensors))
    )
    assert first.done and not same(fresh.states[-1].tensors, keep.states[-1].tensors), "what was learnt matters"


def forgotten(tensors):
    """A checkpoint whose trained networks are fresh again."""
    return {name: torch.zeros_like(part) if name.startswith("learners/") else part for name, part in tensors.items()}


@EACH_NETWORK
def test_vsd_asks_a_network_in_one_forward_and_trains_it_in_another(priors, name):
    prior = priors[name]
    guidance = Vsd(Cfg(2.0), fake=Fake(updates=2, camera_dropout=0.0))
    seen = views(PICTURE[:4])
    asked = {
        key: prior.condition(prior.text([text]).expand(4, -1, -1), seen.cameras)
        for key, text in (("cond", "a red cube, front view"), ("uncond", ""), ("cond_plain", "a red cube"))
    }
    state = guidance.init(prior, Step(0))
    rows: list[int] = []
    hook = prior.unet.register_forward_hook(lambda module, given, output: rows.append(len(given[0])))
    guided = guidance(prior, seen, asked, Step(0), state)
    hook.remove()
    assert rows == [12, 4, 4] and guided.grad.isfinite().all()
