import dataclasses

import pytest
import torch
from small_run import SIZE, prior, priors, recipe, stage, two_stages

from sds3d.cameras import Orbit
from sds3d.core import Background, Guidance, Guided, RenderOutput, Step
from sds3d.diffusion import diffuse
from sds3d.engine import Recipe, Saved, Stage, fit, require_finite, run, tensors
from sds3d.guidance.dds import Dds
from sds3d.guidance.mix import Cfg
from sds3d.guidance.sds import Sds
from sds3d.losses import Losses
from sds3d.prompts import LOOK_WORDS, Prompts
from sds3d.renderers.background import Named
from sds3d.schedules import Ramp, Range
from sds3d.terms import LOOKS, Guide

RED = Prompts("red")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Keep:
    """A watcher that keeps the state of every step."""

    def __init__(self) -> None:
        self.states: list[Saved] = []

    def __call__(self, step, rep, terms, out, numbers) -> None:
        kept = {name: tensor.clone() for name, tensor in tensors(rep, terms).items()}
        self.states.append(Saved(step.stage, step.index + 1, kept))


def test_same_seed_same_bits_and_another_seed_another_asset() -> None:
    results = [run(recipe(), RED, priors(), seed).rep.state() for seed in (0, 0, 1)]
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_the_asset_moves_toward_the_prompt() -> None:
    start = stage().start(None, Step(0, "shape"))
    end = run(recipe(80), RED, priors()).rep
    red, green, blue = end.rgb.mean(dim=0)
    assert red > start.rgb.mean(dim=0)[0]
    assert red > max(green, blue)


@pytest.mark.parametrize("stages", [recipe(6), two_stages(4)])
def test_resuming_after_any_step_ends_in_the_same_bits(stages: Recipe) -> None:
    keep = Keep()
    whole = run(stages, RED, priors(), watchers=(keep,))
    assert whole.done
    for saved in keep.states:
        assert same(run(stages, RED, priors(), saved=saved).rep.state(), whole.rep.state()), (saved.stage, saved.index)


def test_watchers_change_nothing() -> None:
    assert same(
        run(recipe(), RED, priors()).rep.state(), run(recipe(), RED, priors(), watchers=(Keep(), Keep())).rep.state()
    )


def test_stop_ends_after_a_whole_step_and_the_rest_can_follow() -> None:
    keep = Keep()
    cut = run(two_stages(4), RED, priors(), watchers=(keep,), stop=lambda: len(keep.states) == 4)
    assert (cut.done, cut.stage, cut.index) == (False, "shape", 4)
    rest = run(two_stages(4), RED, priors(), saved=keep.states[-1])
    assert same(rest.rep.state(), run(two_stages(4), RED, priors()).rep.state())


def test_no_steps_keep_the_start() -> None:
    assert torch.equal(run(recipe(0), RED, priors()).rep.means, stage().start(None, Step(0, "shape")).means)


def test_progress_spans_the_stage() -> None:
    walked = list(stage(5).walk(Step(0, "shape")))
    assert [step.progress for step in walked] == [0, 0.25, 0.5, 0.75, 1]
    assert [step.index for step in stage(5).walk(Step(0, "shape"), begin=3)] == [3, 4]
    assert next(stage(1).walk(Step(0, "shape"))).progress == 0


def test_views_that_do_not_fill_a_group_are_refused_before_the_run() -> None:
    for views, group in ((2, 1), (4, 2), (3, 3)):
        with pytest.raises(ValueError, match="denoises 4 views jointly"):
            run(recipe(views=views, group=group), RED, priors(group=4))
    assert run(recipe(views=4, group=4), RED, priors(group=4)).done


def test_unknown_words_and_missing_conditions_are_refused_before_the_run() -> None:
    keep = Keep()
    with pytest.raises(ValueError, match="green"):
        run(recipe(), Prompts("green"), priors(), watchers=(keep,))
    negative = {"sds": Guide(Sds(mix=Cfg(2.0, "negative")))}
    with pytest.raises(ValueError, match="negative"):
        run(recipe(guidance=negative), RED, priors(), watchers=(keep,))
    assert not keep.states
    assert run(recipe(guidance=negative), Prompts("red", negative="blue"), priors()).done


def test_a_prior_that_is_not_open_is_named() -> None:
    with pytest.raises(ValueError, match='"discs" is not open; open are: other'):
        run(recipe(), RED, {"other": prior()})


def test_view_words_are_for_priors_of_single_views() -> None:
    step = Step(0, "shape")
    single = stage().terms(RED, priors(group=1), step)[0]
    joint = stage(views=4, group=4).terms(RED, priors(group=4), step)[0]
    silent = stage(guidance={"sds": Guide(Sds(mix=Cfg(1.0)), view_words=False)}).terms(RED, priors(), step)[0]
    assert (single.prompts.view_words, joint.prompts.view_words, silent.prompts.view_words) == (True, False, False)


def test_a_weight_scales_the_gradient_and_its_parts() -> None:
    def grad(weight):
        one = stage(guidance={"sds": Guide(Sds(mix=Cfg(1.0)), weight=weight)})
        step = dataclasses.replace(Step(0, "shape"), progress=0.5)
        term = one.terms(RED, priors(), step)[0]
        cameras, background = one.look(step, 1, torch.zeros(()))
        out = one.renderer(one.start(None, step), cameras, background, step)
        return term(out, cameras, background, step)

    plain, twice = grad(1.0), grad(Ramp(0.0, 4.0))
    torch.testing.assert_close(twice.grad, 2 * plain.grad)
    torch.testing.assert_close(sum(twice.parts.values()), twice.grad, atol=1e-5, rtol=1e-4)


def test_two_terms_draw_independent_noise_and_add_up() -> None:
    both = {"first": Guide(Sds(mix=Cfg(1.0))), "second": Guide(Sds(mix=Cfg(1.0)))}
    step = Step(0, "shape")
    one = stage(guidance=both)
    terms = one.terms(RED, priors(), step)
    cameras, background = one.look(step, 1, torch.zeros(()))
    out = one.renderer(one.start(None, step), cameras, background, step)
    first, second = (term(out, cameras, background, step).grad for term in terms)
    assert not torch.equal(first, second)


@dataclasses.dataclass(frozen=True)
class Broken(Guidance):
    """Gives a gradient that is not a number at one step."""

    at: int = 2

    def __call__(self, prior, views, conditions, step, state):
        z = prior.encode(views.image)
        x = diffuse(prior, z, step, (0.1, 0.5))
        grad = prior.predict(x.ask(conditions, "cond"))["cond"] - x.eps
        return Guided(z, grad * float("nan") if step.index == self.at else grad)


def test_a_number_that_is_not_finite_stops_the_run_before_it_is_used() -> None:
    keep = Keep()
    with pytest.raises(ArithmeticError, match=r'gradient of ".*" is not finite at step 2 of stage "shape"'):
        run(recipe(guidance={"broken": Guide(Broken())}), RED, priors(), watchers=(keep,))
    assert len(keep.states) == 2
    assert all(torch.isfinite(tensor).all() for tensor in keep.states[-1].tensors.values())


def test_a_value_that_is_not_finite_is_named() -> None:
    rep = stage().start(None, Step(0))
    rep.means.data[0, 0] = float("inf")
    with pytest.raises(ArithmeticError, match='value of "means"'):
        require_finite(rep, Step(0))


def test_fit_returns_the_next_step() -> None:
    first = Step(0, "shape")
    one = stage(4)
    rep = one.start(None, first)
    rep.prepare(one.optimise, first)
    assert fit(one, rep, one.terms(RED, priors(), first), first) == 4


@pytest.mark.parametrize("name", ["opacity", "sparsity", "scale", "anisotropy", "depth_tv"])  # not those of meshes
def test_regularisers_are_finite_scalars_that_the_run_descends(name: str) -> None:
    one = stage(losses=Losses({name: 1.0}))
    step = Step(0, "shape")
    rep = one.start(None, step)
    cameras, background = one.look(step, 1, torch.zeros(()))
    loss = one.losses(rep, one.renderer(rep, cameras, background, step), step)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    if loss.requires_grad:
        loss.backward()
        require_finite(rep, step)
    assert run(recipe(3, losses=Losses({name: Ramp(0.0, 0.1)})), RED, priors()).done


def test_without_regularisers_their_sum_is_zero() -> None:
    out = RenderOutput(*(torch.rand(1, 4, 4, c) for c in (3, 1, 1, 3)))
    assert Losses()(stage().start(None, Step(0)), out, Step(0)) == 0
    with pytest.raises(ValueError, match='no regulariser "opacty"'):
        Losses({"opacty": 1.0})


def test_looks_are_pictures_and_have_their_words() -> None:
    assert LOOKS.keys() == LOOK_WORDS.keys()
    normal = torch.nn.functional.normalize(torch.randn(1, 4, 4, 3), dim=-1)
    out = RenderOutput(torch.rand(1, 4, 4, 3), torch.rand(1, 4, 4, 1), torch.rand(1, 4, 4, 1), normal)
    for look in LOOKS.values():
        picture = look(out)
        assert picture.shape == (1, 4, 4, 3)
        assert picture.min() >= 0
        assert picture.max() <= 1
    empty = dataclasses.replace(out, alpha=torch.zeros(1, 4, 4, 1))
    assert (LOOKS["normal"](empty) == 0.5).all() and (LOOKS["depth"](empty) == 0).all()


def test_depth_is_seen_as_nearness_with_gradient() -> None:
    depth = torch.tensor([2.0, 2.5, 3.0, 9.0]).view(1, 1, 4, 1).requires_grad_()
    alpha = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 1, 4, 1)
    picture = LOOKS["depth"](RenderOutput(torch.zeros(1, 1, 4, 3), alpha, depth, torch.zeros(1, 1, 4, 3)))
    torch.testing.assert_close(picture[0, 0, :, 0].detach(), torch.tensor([1.0, 0.6, 0.2, 0.0]))
    picture.sum().backward()
    torch.testing.assert_close(depth.grad[0, 0, 1:3, 0], torch.tensor([-2.4, -2.4]))  # three channels of -0.8
    assert depth.grad[0, 0, 3] == 0


def test_backgrounds_reach_the_prompt() -> None:
    one = stage(views=4, group=2, background=Named(("black", "white")))
    term = one.terms(RED, priors(), Step(0, "shape"))[0]
    background = one.background(Step(0, "shape"), 4, 2)
    cameras = Orbit(4, SIZE, group=2)(Step(0))
    said = term.prompts.texts(cameras, Background(background.rgb, background.name))["cond"]
    assert [text.split()[-1] for text in said] == [name for name in background.name for _ in range(2)]


@pytest.mark.parametrize("bad", [{"steps": -1}, {"guidance": {}}, {"guidance": {"A b": Guide(Sds())}}])
def test_impossible_stages_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(stage(), **bad)
    assert isinstance(stage(), Stage)


def test_recipes_need_stages_with_plain_names() -> None:
    for stages in ({}, {"../x": stage()}):
        with pytest.raises(ValueError):
            Recipe(stages)


class Seen(Guidance):
    """Keeps what it is shown and moves the views toward grey, so that asset and source part."""

    def __init__(self) -> None:
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, prior, views, conditions, step, state) -> Guided:
        self.pairs.append((views.image.detach(), views.source))
        z = prior.encode(views.image)
        return Guided(z, z.detach())


def test_an_edit_shows_every_term_what_the_asset_was_at_the_cameras_of_the_step() -> None:
    seen = Seen()
    steps = recipe(4, guidance={"seen": Guide(seen)})
    run(steps, Prompts("red", source="blue"), priors())
    first = Step(0, "shape")
    start, one = stage().start(None, first), steps.stages["shape"]
    for step, (image, was) in zip(one.walk(first), seen.pairs, strict=True):
        cameras, background = one.look(step, 1, torch.zeros(()))
        assert torch.equal(was, one.renderer(start, cameras, background, step).rgb.detach())
        assert torch.equal(image, was) == (step.index == 0)


def test_an_edit_into_what_is_there_already_leaves_it_as_it_is() -> None:
    # The two scores of DDS are one then, so no other draw of noise can move anything.
    dds = {"dds": Guide(Dds(t=Range(0.1, 0.6)))}
    still = run(recipe(3, guidance=dds), Prompts("red", source="red"), priors()).rep
    assert torch.equal(still.means, stage().start(None, Step(0, "shape")).means)
    moved = run(recipe(3, guidance=dds), Prompts("red", source="blue"), priors()).rep
    assert not torch.equal(moved.means, still.means)


def test_an_edit_without_a_source_prompt_is_refused_and_one_resumes_to_the_same_bits() -> None:
    stages = recipe(4, guidance={"dds": Guide(Dds(t=Range(0.1, 0.6)))})
    with pytest.raises(ValueError, match="frozen source"):
        run(stages, RED, priors())
    keep, edit = Keep(), Prompts("red", source="blue")
    whole = run(stages, edit, priors(), watchers=(keep,))
    assert same(run(stages, edit, priors(), saved=keep.states[1]).rep.state(), whole.rep.state())
