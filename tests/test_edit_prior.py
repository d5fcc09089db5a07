"""Priors that are shown a picture and told an instruction: the network, its mix and guidance, and how it is trained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_guidance import image, linear_prior

from sds3d.cameras import orbit
from sds3d.core import Background, Condition, Noised, Query, Step
from sds3d.guidance.ip2p import Ip2p
from sds3d.guidance.mix import Cfg, Instruct
from sds3d.guidance.sds import Sds
from sds3d.playroom import edit_pairs, network
from sds3d.playroom.data import cameras
from sds3d.playroom.edit_pairs import changed, draw_edit, group_of
from sds3d.playroom.grammar import EXTRAS, is_held_out, parse
from sds3d.playroom.instructions import rewrite, vocabulary
from sds3d.playroom.recolour import basis, colours, picture, slots
from sds3d.playroom.render import render
from sds3d.playroom.scenes import build
from sds3d.priors.catalogue import WEIGHTS, open_prior
from sds3d.priors.edit import EditPrior
from sds3d.priors.latent import LatentCodec
from sds3d.prompts import SHOWN, Prompts
from sds3d.schedules import Range
from sds3d.terms import Term
from sds3d.testing import conditions, views

SCENES = ["a head with tan skin, black hair, blue eyes, a hat and glasses", "a red cube next to a white cone",
          "a green house with a red roof", "a blue torus"]  # fmt: skip


# ---- Pictures and instructions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("caption", SCENES)
def test_a_scene_is_drawn_in_other_colours_without_rendering_it_again(caption: str) -> None:
    spec = parse(caption)
    seen = cameras(0).resized(16, 16)
    other = slots(spec)[0][0]  # no colour that the light burns out
    drawn = picture(basis(spec, seen), colours(other))
    error = (drawn - render(build(other), seen, torch.zeros(4, 3), samples=2).rgb).abs()
    assert error.quantile(0.99) < 1e-5 and error.max() < 0.03  # more where the light burns the whites of eyes out


def test_every_training_instruction_says_its_edit_and_no_edit_is_held_out() -> None:
    rng = np.random.default_rng(0)
    for number in range(300):
        i, j, before, after, instruction = draw_edit(group_of(number), rng)
        assert rewrite(before, instruction) == after
        assert 1 <= len(changed(before, after)) <= 2 and not is_held_out(before) and not is_held_out(after)
        rendered = group_of(number)
        extras = set(changed(before, after)) & set(EXTRAS)  # only what the group rendered differs in shape
        assert extras == set(changed(rendered[i], rendered[j]))


# ---- The prior ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["pixels", "latents"])
def edit_folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in the layout of InstructPix2Pix: its UNet takes twice what it gives."""
    folder, channels = tmp_path_factory.mktemp("edit"), 4 if request.param else 12
    tiny.save(folder, channels, vae=request.param, in_channels=2 * channels)
    return folder


def test_a_network_with_twice_the_channels_is_shown_the_source(edit_folder: Path) -> None:
    prior = open_prior(edit_folder)
    assert isinstance(prior, EditPrior) and prior.reads_source
    source = image(4).float()
    told = prior.condition(prior.text(["a red cube"]), orbit([0, 90, 180, 270], 0, prior.size), reference=source)
    scale = prior.codec.scale if isinstance(prior.codec, LatentCodec) else 1
    torch.testing.assert_close(told.image, prior.encode(source) / scale)
    x = prior.encode(source)
    t = torch.full((4,), 0.5)
    inputs: list[torch.Tensor] = []
    hook = prior.unet.register_forward_hook(lambda module, given, output: inputs.append(given[0]))
    blind = replace(told, image=None)
    both = prior.predict({"shown": Query(x, t, told), "blind": Query(x, t, blind)})
    hook.remove()
    assert told.image is not None
    n = x.shape[1]
    assert torch.equal(inputs[0][:4, n:], told.image) and not inputs[0][4:, n:].any()
    assert torch.equal(inputs[0][:, :n], torch.cat([x, x]))
    assert not torch.equal(both["shown"], both["blind"])


def test_a_source_of_other_rows_is_refused(edit_folder: Path) -> None:
    prior = open_prior(edit_folder)
    x = prior.encode(image(4).float())
    told = Condition(prior.text(["red"]).expand(4, -1, -1), image=x[:2])
    with pytest.raises(ValueError, match="2 source pictures are shown to 4 views"):
        prior.predict({"edit": Query(x, torch.full((4,), 0.5), told)})


def test_the_edit_network_begins_as_the_prior_that_it_was_made_of() -> None:
    unet, text = network.load(WEIGHTS)
    wide, reader = network.told_source(unet, text, vocabulary())
    old, new = network.tokenizer(), network.tokenizer(vocabulary())
    said = "a red cube"
    states = [
        encoder(torch.tensor([tokens(said, padding="max_length")["input_ids"]])).last_hidden_state
        for encoder, tokens in ((text, old), (reader, new))
    ]
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)
    z, source = torch.randn(2, 1, 48, 16, 16, generator=torch.Generator().manual_seed(0))
    t, told = torch.tensor([500]), {"class_labels": torch.zeros(1, 16), "return_dict": False}
    before = unet(z, t, states[0], **told)[0]
    torch.testing.assert_close(wide(torch.cat([z, source], 1), t, states[1], **told)[0], before, atol=1e-4, rtol=1e-4)


# ---- Mix and guidance -----------------------------------------------------------------------------------------------

NAMED = {"uncond": "", "image": "red", "instruct": "blue"}


def shown_prior():
    """An exact prior that says it is shown the source."""
    prior = linear_prior()
    object.__setattr__(prior, "reads_source", True)
    return prior


def test_scales_of_one_give_the_instructed_prediction_and_of_zero_the_blind_one() -> None:
    eps = {name: torch.randn(2, 3, 4, 4, dtype=torch.float64) for name in NAMED}
    zero = torch.zeros(1)
    asked: tuple = ({}, Noised(zero, zero, zero, zero, zero), 1)
    torch.testing.assert_close(Instruct(1, 1)(eps, *asked), eps["instruct"])
    torch.testing.assert_close(Instruct(0, 0)(eps, *asked), eps["uncond"])
    torch.testing.assert_close(Instruct(0, 1)(eps, *asked), eps["image"])
    same = {**eps, "image": eps["uncond"]}  # a picture that says nothing leaves classifier-free guidance
    torch.testing.assert_close(
        Instruct(3, 9)(same, *asked), Cfg(3)({"uncond": eps["uncond"], "cond": eps["instruct"]}, *asked)
    )


@pytest.mark.parametrize("form", ["eps", "x0"])
def test_a_picture_that_says_nothing_leaves_the_sds_of_the_instruction(form) -> None:
    prior = shown_prior()
    seen = views(image(), image().flip(1))
    told = conditions(prior, 4, {"uncond": "", "image": "", "instruct": "blue", "cond": "blue"})
    at = Range(0.6, 0.6)
    guided = Ip2p(form, mix=Instruct(3, 2), t=at)(prior, seen, told, Step(0), {})
    plain = Sds(form, mix=Cfg(3), t=at)(prior, seen, told, Step(0), {})
    torch.testing.assert_close(guided.grad, plain.grad)
    assert guided.parts is not None and set(guided.parts) >= {"source", "edit"}
    if form == "eps":
        torch.testing.assert_close(torch.stack([*guided.parts.values()]).sum(0), guided.grad)


@pytest.mark.parametrize(
    ("prior", "names", "said"),
    [
        (linear_prior(), {"source", "instruct"}, "reads instructions: --prior playroom-edit"),
        (shown_prior(), {"source"}, "by an instruction, and this run has none; use: sds3d edit"),
    ],
)
def test_what_cannot_be_edited_by_instruction_is_told_apart(prior, names: set[str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Ip2p().check(prior, frozenset(names))


def test_only_a_prior_that_is_shown_the_source_is_asked_by_instruction(edit_folder: Path) -> None:
    prompts = Prompts("a red cube", source="a blue cube", instruction="red")
    assert set(SHOWN) <= prompts.names() and not set(SHOWN) & Prompts("a cube").names()
    seen, grey = orbit([0, 90, 180, 270], 0, 16), Background(torch.full((4, 3), 0.5), ("grey",))
    shown = Term("edit", Ip2p(), open_prior(edit_folder), replace(prompts, name_background=False))
    told = shown.conditions(seen, grey, image(4).float())
    assert told["instruct"].image is not None and told["image"].image is not None and told["cond"].image is None
    texts = prompts.texts(seen, grey)
    assert set(texts["instruct"]) == {"red"} and set(texts["image"]) == {""}
    plain = Term("edit", Sds(), linear_prior(), prompts)
    assert not set(SHOWN) & set(plain.conditions(seen, grey))


# ---- Training -------------------------------------------------------------------------------------------------------

SMALL = ["--scenes", "2", "--rows", "4", "--threads", "1", "--device", "cpu"]


def heads_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures would not fit the network, but few rays do."""
    monkeypatch.setattr(edit_pairs, "basis", lambda spec, seen: basis(spec, seen, samples=1))
    monkeypatch.setattr(edit_pairs, "KINDS", {"head": 1.0})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edit", "control"])
def test_both_trainings_resume_to_the_same_bits_and_write_what_opens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sds3d.playroom import train_control, train_edit

    heads_first(monkeypatch)
    train = {"edit": train_edit, "control": train_control}[name]
    work = tmp_path / "work"
    train.main(["--work", str(work), "--steps", "2", *SMALL])
    straight = torch.load(work / f"train-{name}.pt", weights_only=True)
    (work / f"train-{name}.pt").unlink()
    for until in ("1", "2"):
        train.main(["--work", str(work), "--steps", "2", "--until", until, *SMALL])
    resumed = torch.load(work / f"train-{name}.pt", weights_only=True)
    assert resumed["step"] == 2
    assert all(
        torch.equal(a, b) for a, b in zip(straight["average"].values(), resumed["average"].values(), strict=True)
    )
    if name == "edit":
        prior = open_prior(work / "prior-edit")
        assert isinstance(prior, EditPrior) and prior.group == 4
        size, most = sum(file.stat().st_size for file in (work / "prior-edit").rglob("*.safetensors")), 16e6
    else:
        prior = open_prior(f"playroom+{work / 'control'}")
        size, most = sum(file.stat().st_size for file in (work / "control").rglob("*.safetensors")), 8e6
    assert size <= most
