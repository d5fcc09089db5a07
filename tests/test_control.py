"""A prior under ControlNets: which rows it steers, against diffusers itself, in guidances and in a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import small_run
import torch

from sds3d import recipes, schema
from sds3d.cameras import orbit
from sds3d.controls import Landmarks
from sds3d.core import Condition, Noised, Query, Step
from sds3d.diffusion import diffuse
from sds3d.engine import check, run
from sds3d.exporting import provenance
from sds3d.guidance.sds import Sds
from sds3d.guidance.vsd import Vsd
from sds3d.landmarks import fade
from sds3d.priors import folder as files
from sds3d.priors.catalogue import open_prior
from sds3d.priors.control import Controlled, controlled, fresh
from sds3d.priors.network import open_folder
from sds3d.priors.wrapped import Wrapped
from sds3d.prompts import Prompts
from sds3d.schedules import Range
from sds3d.terms import Guide
from sds3d.testing import GuidanceLaws, analytic_prior

KINDS = ("pixel", "views", "latent")
VIEWS = 8  # two groups of the multi-view prior
CAMERAS = orbit([45.0 * i for i in range(VIEWS)], 15.0, 16)
SEEN = Step(0).uniform("seen", VIEWS * 16 * 16 * 3).reshape(VIEWS, 16, 16, 3)
PICTURE = Step(1).uniform("picture", VIEWS * 16 * 16 * 3).reshape(VIEWS, 16, 16, 3)


def save(folder: Path, unet, seed: int | None, widths: tuple[int, ...]) -> Path:
    """A ControlNet of a UNet; fresh without a seed, else with random weights where it begins at zero."""
    net = fresh(unet, widths)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in net.parameters():
            if not parameter.any():
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plain(folders):
    return {name: open_folder(folders[name]) for name in KINDS}


@pytest.fixture(scope="session")
def nets(folders, plain, tmp_path_factory):
    """For each prior a fresh net, one with pictures of 16 pixels and one with pictures of 32."""
    root = tmp_path_factory.mktemp("nets")
    wanted = {"fresh": (None, (4, 8)), "a": (1, (4, 8)), "b": (2, (4, 8, 8))}
    return {
        (name, net): save(root / f"{name}-{net}", prior.unet, *told)
        for name, prior in plain.items()
        for net, told in wanted.items()
    }


def steered(plain, nets, name: str, *chosen: str) -> Controlled:
    return controlled(plain[name], [nets[name, net] for net in chosen])


def ask(prior, control=(), rows: slice = slice(0, VIEWS)) -> tuple[Noised, dict[str, Condition]]:
    cameras = CAMERAS[rows]
    x = diffuse(prior, prior.encode(SEEN[rows]), Step(3, row=rows.start), (0.1, 0.9))
    asked = {
        name: prior.condition(prior.text([text]), cameras, control=control)
        for name, text in (("cond", "a red cube"), ("uncond", ""))
    }
    return x, asked


def answers(prior, control=(), rows: slice = slice(0, VIEWS)) -> dict[str, torch.Tensor]:
    x, asked = ask(prior, control, rows)
    return prior.predict(x.ask(asked, "cond", "uncond"))


ALL = pytest.mark.parametrize("name", KINDS)


# ---- which rows, and how much ---------------------------------------------------------------------------------------


@ALL
def test_a_fresh_net_changes_nothing(plain, nets, name):
    told = answers(steered(plain, nets, name, "fresh"), [(PICTURE, 1.0)])
    for key, eps in answers(plain[name]).items():
        torch.testing.assert_close(told[key], eps, rtol=0, atol=1e-6)


@ALL
def test_only_rows_with_a_scale_change(plain, nets, name):
    """In a multi-view prior, all views of a group with one such row."""
    prior = steered(plain, nets, name, "a")
    scale = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 0.5, 0.0, 0.0])
    told, bare = answers(prior, [(PICTURE, scale)]), answers(plain[name])
    moved = scale.reshape(-1, prior.group).any(dim=1).repeat_interleave(prior.group)
    for key, eps in bare.items():
        assert torch.equal(told[key][~moved], eps[~moved])
        assert ((told[key] - eps)[moved].abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@ALL
@pytest.mark.parametrize("control", [(), 0.0, torch.zeros(VIEWS)], ids=["none", "zero", "zeros"])
def test_without_a_scale_it_is_the_plain_prior_to_the_last_bit(plain, nets, name, control):
    told = answers(steered(plain, nets, name, "a"), [(PICTURE, control)] if control != () else ())
    for key, eps in answers(plain[name]).items():
        assert torch.equal(told[key], eps)


@ALL
def test_a_batch_is_its_groups(plain, nets, name):
    prior = steered(plain, nets, name, "a", "b")
    scale = torch.linspace(0, 1, VIEWS)
    together = answers(prior, [(PICTURE, scale), (1 - PICTURE, 0.5)])
    for first in range(0, VIEWS, prior.group):
        rows = slice(first, first + prior.group)
        alone = answers(prior, [(PICTURE[rows], scale[rows]), (1 - PICTURE[rows], 0.5)], rows)
        for key, eps in alone.items():
            torch.testing.assert_close(together[key][rows], eps, rtol=1e-4, atol=1e-5)


@ALL
def test_questions_with_and_without_a_picture_share_one_forward(plain, nets, name):
    prior = steered(plain, nets, name, "a")
    x, told = ask(prior, [(PICTURE, 1.0)])
    _, bare = ask(prior)
    seen: list[int] = []
    hooks = [net.register_forward_hook(lambda *given: seen.append(len(given[-1][1]))) for net in prior.nets]
    hooks += [prior.unet.register_forward_hook(lambda *given: seen.append(len(given[-1][0])))]
    both = prior.predict(x.ask(told, told="cond") | x.ask(bare, bare="cond"))
    for hook in hooks:
        hook.remove()
    assert seen == [VIEWS, 2 * VIEWS]  # the net is asked about its own rows alone
    torch.testing.assert_close(both["told"], prior.predict(x.ask(told, "cond"))["cond"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both["bare"], plain[name].predict(x.ask(bare, "cond"))["cond"], rtol=1e-4, atol=1e-5)


def test_nets_see_pictures_at_their_own_size(plain, nets):
    prior = steered(plain, nets, "pixel", "a", "b")
    (small, one), (large, half) = prior.condition(
        prior.text([""]), CAMERAS, control=[(PICTURE, 1.0), (PICTURE, 0.5)]
    ).control
    assert small.shape == (VIEWS, 3, 16, 16) and large.shape == (VIEWS, 3, 32, 32)
    torch.testing.assert_close(small, PICTURE.permute(0, 3, 1, 2))
    assert one.tolist() == [1.0] * VIEWS and half.tolist() == [0.5] * VIEWS


# ---- against diffusers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pixel", "latent"])
def test_two_nets_are_the_sum_that_diffusers_makes(folders, plain, nets, name):
    prior = steered(plain, nets, name, "a", "b")
    x, asked = ask(prior, [(PICTURE, 0.7), (1 - PICTURE, 0.4)])
    unet = files.load(folders[name] / "unet")
    inputs = (x.z_t, prior.index(x.t), asked["cond"].text)
    down, mid = None, None
    for net, scale, (picture, _) in zip("ab", (0.7, 0.4), asked["cond"].control, strict=True):
        skips, middle = files.load(nets[name, net])(*inputs, picture, conditioning_scale=scale, return_dict=False)
        down = skips if down is None else [p + q for p, q in zip(down, skips, strict=True)]
        mid = middle if mid is None else mid + middle
    straight = unet(
        *inputs, down_block_additional_residuals=down, mid_block_additional_residual=mid, return_dict=False
    )[0]
    torch.testing.assert_close(prior.predict(x.ask(asked, "cond"))["cond"], straight, rtol=0, atol=1e-6)


def test_several_views_are_what_diffusers_makes_of_them(folders, plain, nets):
    """Joint attention and cameras in both networks; eps of a v-prediction."""
    from sds3d.priors.multiview import JointAttention

    prior = steered(plain, nets, "views", "a")
    x, asked = ask(prior, [(PICTURE, 0.7)])
    unet, net = files.load(folders["views"] / "unet"), files.load(nets["views", "a"])
    for network in (unet, net):
        network.set_attn_processor(JointAttention())
    told = {"class_labels": asked["cond"].camera, "cross_attention_kwargs": {"views": 4}}
    inputs = (x.z_t, prior.index(x.t), asked["cond"].text)
    down, mid = net(*inputs, asked["cond"].control[0][0], conditioning_scale=0.7, return_dict=False, **told)
    said = unet(*inputs, down_block_additional_residuals=down, mid_block_additional_residual=mid, **told)[0]
    straight = prior.to_eps(Query(x.z_t, x.t, asked["cond"]), said)
    torch.testing.assert_close(prior.predict(x.ask(asked, "cond"))["cond"], straight, rtol=0, atol=1e-6)


@ALL
def test_a_fresh_net_copies_the_first_half_and_pools_the_text_alike(folders, plain, nets, name):
    unet, net = files.load(folders[name] / "unet"), files.load(nets[name, "fresh"])
    text = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0))
    if unet.config.addition_embed_type == "text":
        torch.testing.assert_close(net.add_embedding(text), unet.add_embedding(text), rtol=0, atol=0)
    theirs, own = unet.state_dict(), net.state_dict()
    copied = [key for key in own if not key.startswith("controlnet_")]
    assert any("attn2" in key for key in copied) and all(torch.equal(own[key], theirs[key]) for key in copied)


# ---- guidances ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Showing(Wrapped):
    """Shows its prior one picture at every view, at scales that repeat with the group."""

    def condition(self, text, cameras, reference=None, control=()):
        rows = len(text) if cameras is None else len(cameras)
        scale = torch.tensor([1.0, 0.5, 0.0, 0.25])[: self.group].repeat(rows // self.group)
        return self.prior.condition(text, cameras, reference, [(PICTURE[:1].expand(rows, -1, -1, -1), scale)])


class UnderControl(GuidanceLaws):
    @pytest.fixture(params=["latent", "views"], ids=["one view", "four views"])
    def prior(self, request, plain, nets):
        return Showing(steered(plain, nets, request.param, "a"))


class TestSdsUnderControl(UnderControl):
    guidance = Sds(t=Range(0.1, 0.9))


class TestVsdUnderControl(UnderControl):
    """An adapter of the prior's network, trained under the same control."""

    guidance = Vsd(t=Range(0.1, 0.9))
    rows = 4


def test_an_adapter_learns_under_control(plain, nets):
    """Its rows are steered too, and its gradient reaches it alone."""
    prior = steered(plain, nets, "latent", "a")
    x, asked = ask(prior, [(PICTURE, 1.0)])
    lora = prior.adapter(2, 1e-2, Step(0))
    assert lora is not None
    said = prior.predict(x.ask(asked, "cond"))["cond"]
    torch.testing.assert_close(lora(Query(x.z_t, x.t, asked["cond"])).detach(), said, rtol=1e-4, atol=1e-5)
    lora.fit((lora(Query(x.z_t, x.t, asked["cond"])) - x.eps).square().mean())
    again = prior.predict({"it": Query(x.z_t, x.t, asked["cond"], lora)})["it"]
    assert (again - said).abs().max() > 1e-5
    assert torch.equal(prior.predict(x.ask(asked, "cond"))["cond"], said)


# ---- what is refused ------------------------------------------------------------------------------------------------


def damage(place: Path, config=None, weights=None) -> None:
    if config is not None:
        file = place / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    if weights is not None:
        weights(place / "diffusion_pytorch_model.safetensors")


DAMAGES = {
    "no folder": (shutil.rmtree, FileNotFoundError, "no ControlNet folder"),
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, "config.json is missing"),
    "no weights": (lambda f: damage(f, weights=Path.unlink), FileNotFoundError, "no weights"),
    "pickled": (lambda f: damage(f, weights=lambda w: w.rename(w.with_suffix(".bin"))), ValueError, "pickled"),
    "cut short": (lambda f: damage(f, weights=lambda w: w.write_bytes(w.read_bytes()[:-9])), ValueError, "cut short"),
    "a UNet": (lambda f: damage(f, {"_class_name": files.UNET}), ValueError, "holds ControlNetModel"),
    "other texts": (lambda f: damage(f, {"cross_attention_dim": 24}), ValueError, "cross_attention_dim is 24, not 16"),
    "other widths": (lambda f: damage(f, {"block_out_channels": [8, 8]}), ValueError, r"is \[8, 8\], not \[16, 32\]"),
    "of SDXL": (lambda f: damage(f, {"addition_embed_type": "text_time"}), ValueError, "as SDXL does"),
    "cameras": (
        lambda f: damage(f, {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}),
        ValueError,
        "wants cameras",
    ),
    "its own code": (lambda f: damage(f, {"auto_map": {}}), ValueError, "code of its own"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_folder_that_is_no_net_is_refused_in_a_sentence(plain, nets, tmp_path, what):
    change, kind, sentence = DAMAGES[what]
    place = shutil.copytree(nets["latent", "a"], tmp_path / "net")
    change(place)
    with pytest.raises(kind, match=sentence) as refused:
        controlled(plain["latent"], [place])
    assert str(place) in str(refused.value) and "\n" not in str(refused.value)


def test_a_prior_says_how_many_pictures_it_reads(plain, nets):
    text = plain["pixel"].text([""])
    with pytest.raises(ValueError, match="reads text, not reference or control pictures"):
        plain["pixel"].condition(text, CAMERAS, control=[(PICTURE, 1.0)])
    with pytest.raises(ValueError, match="reads text, not reference or control pictures"):
        analytic_prior().condition(analytic_prior().text(["red"]), CAMERAS, control=[(PICTURE, 1.0)])
    prior = steered(plain, nets, "pixel", "a")
    with pytest.raises(ValueError, match="reads 1 control pictures, given 2"):
        prior.condition(text, CAMERAS, control=[(PICTURE, 1.0)] * 2)
    with pytest.raises(ValueError, match="2 pictures to 8 views"):
        prior.condition(text, CAMERAS, control=[(PICTURE[:2], 1.0)])
    with pytest.raises(ValueError, match="reads text, not reference"):
        prior.condition(text, CAMERAS, reference=PICTURE)
    told = prior.condition(text, CAMERAS, control=[(PICTURE, 1.0)])
    z = prior.encode(SEEN)
    with pytest.raises(ValueError, match="reads text, not reference or control pictures"):
        plain["pixel"].predict({"cond": Query(z, torch.full((VIEWS,), 0.5), told)})


# ---- by name, in a recipe, in a run ---------------------------------------------------------------------------------


def test_a_prior_is_named_with_its_nets(folders, nets, plain):
    name = "+".join(str(place) for place in (folders["latent"], nets["latent", "a"], nets["latent", "b"]))
    prior = open_prior(name)
    assert isinstance(prior, Controlled) and len(prior.nets) == 2
    assert prior.sha256 not in (plain["latent"].sha256, steered(plain, nets, "latent", "b", "a").sha256)
    told = {"recipe": {"stages": {}}, "prompt": "a red cube", "seed": 0, "priors": {name: {"licence": prior.licence}}}
    assert provenance(told)["priors"] == "latent+latent-a+latent-b (unknown)"  # no folder above them
    control = [(PICTURE, 0.7), (1 - PICTURE, 0.4)]
    told = answers(prior, control)
    for key, eps in answers(steered(plain, nets, "latent", "a", "b"), control).items():
        assert torch.equal(told[key], eps)
    for net, sentence in {
        "nobody/nothing/part": "hf download nobody/nothing",
        "./gone": "no ControlNet folder",
    }.items():
        with pytest.raises(FileNotFoundError, match=sentence):
            open_prior(f"{folders['latent']}+{net}")


def test_a_term_names_its_control_in_a_recipe():
    data = schema.to_data(recipes.build(recipes.read("gaussians", False)))
    (name,) = data["stages"]
    terms = data["stages"][name]["guidance"]
    assert all("control" not in term for term in terms.values())  # so what was resolved before stays as it was
    first = next(iter(terms.values()))
    first["control"] = [{"kind": "landmarks", "scale": 0.8, "draws": "openpose"}]
    built = recipes.build(data)
    guide = next(iter(built.stages[name].guidance.values()))
    assert guide.control == (Landmarks("openpose", 0.8),)
    assert recipes.build(schema.to_data(built)) == built
    first["control"] = [{"kind": "landmark"}]
    with pytest.raises(ValueError, match=r'control\[0\].kind: .*"landmark".*"landmarks"'):
        recipes.build(data)
    first["control"] = [{"kind": "landmarks", "template": "head.obj"}]
    with pytest.raises(ValueError, match="go together"):
        recipes.build(data)


@pytest.mark.parametrize("draws", ["mediapipe", "openpose"])
def test_landmarks_fade_from_the_front_to_the_side(draws):
    cameras = orbit([0.0, 45.0, 90.0, 180.0], 0.0, 64)
    picture, scale = Landmarks(draws, 0.5)(cameras)
    assert picture.shape == (4, 64, 64, 3) and isinstance(scale, torch.Tensor)
    torch.testing.assert_close(scale, 0.5 * fade(cameras))
    torch.testing.assert_close(scale, torch.tensor([0.5, 0.5 * 0.5**0.5, 0, 0]), atol=1e-6, rtol=0)
    lit = (picture.amax(dim=-1) > 0).float().mean(dim=(1, 2))
    assert lit[0] > 0.01 and lit[3] == 0


def views_recipe(control: Sequence[Landmarks], **changed):
    return small_run.recipe(
        3,
        prior="net",
        views=4,
        group=4,
        guidance={"sds": Guide(Sds(t=Range(0.3, 0.7)), control=tuple(control))},
        **changed,
    )


def test_a_run_is_steered_by_landmarks(plain, nets):
    prompts = Prompts("a red cube", name_background=False)
    priors = {"net": steered(plain, nets, "views", "a")}
    shown: list[torch.Tensor] = []
    hook = (
        priors["net"]
        .nets[0]
        .register_forward_pre_hook(lambda net, given, told: shown.append(told["controlnet_cond"]), with_kwargs=True)
    )
    ends = [run(views_recipe(control), prompts, priors).rep.state() for control in ((Landmarks(),), (Landmarks(),), ())]
    hook.remove()
    assert len(shown) == 2 * 3 and all(picture.amax() > 0.5 for picture in shown)
    same, other = (all(torch.equal(ends[0][key], end[key]) for key in ends[0]) for end in ends[1:])
    assert same and not other


def test_what_cannot_be_steered_is_refused_before_the_run(plain, nets, tmp_path):
    prompts = Prompts("a red cube", name_background=False)
    with pytest.raises(ValueError, match="reads text, not reference or control pictures"):
        check(views_recipe([Landmarks()]), prompts, {"net": plain["views"]})
    gone = Landmarks(template=str(tmp_path / "head.obj"), landmarks=str(tmp_path / "points.json"))
    with pytest.raises(ValueError, match=r"There is no file .*head\.obj"):
        check(views_recipe([gone]), prompts, {"net": steered(plain, nets, "views", "a")})
    with pytest.raises(ValueError, match="reads 1 control pictures, given 2"):
        check(views_recipe([Landmarks()] * 2), prompts, {"net": steered(plain, nets, "views", "a")})
    with pytest.raises(ValueError, match="scale must be at least 0"):
        replace(Landmarks(), scale=-1.0)
