"""The choice among candidates that a stage may begin with: by a prior, by CLIP, and once in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import small_run
import torch
from tiny import tokenizer

from sds3d import choosing
from sds3d.core import Background, Cameras, RenderOutput, Representation, Step
from sds3d.engine import Saved, Stage, run
from sds3d.priors.clip import Clip, open_clip
from sds3d.prompts import Prompts
from sds3d.representations.gaussians import Gaussians
from sds3d.representations.start import Blob

PROMPT = Prompts("red")
LEVELS = (-3.0, 0.0, 3.0)  # logits of red less blue


def ball(level: float) -> Gaussians:
    """A ball, blue to red."""
    ball = Blob(60, 0.5)(None, Step(0))
    assert isinstance(ball, Gaussians)
    with torch.no_grad():
        ball.opacity_logits += 4
        ball.colour_logits[:] = torch.tensor([level, -4.0, -level])
    return ball


@dataclass(frozen=True)
class Balls:
    """A start that offers balls from blue to red."""

    clip: str | None = None
    levels: tuple[float, ...] = LEVELS

    def candidates(self, step: Step) -> Sequence[Representation]:
        return [ball(level) for level in self.levels]

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        return ball(0.0)

    def blank(self, previous: Representation | None) -> Representation:
        return Blob().blank(previous)


class Never(Balls):
    def candidates(self, step: Step) -> Sequence[Representation]:
        raise AssertionError("a run that goes on chose again")


def scored(stage: Stage, candidates: Sequence[Representation], prompt: str) -> torch.Tensor:
    first = Step(0, "shape")
    (term,) = stage.terms(Prompts(prompt), small_run.priors(), first)
    looks = [
        choosing.Look(*stage.look(replace(first, index=k), 1, torch.zeros(())), t) for k, t in enumerate((0.3, 0.6))
    ]
    return choosing.by_prior(candidates, term, stage.renderer, looks, first)


@pytest.mark.parametrize("prompt", ["red", "blue"])
def test_a_prior_ranks_by_how_near_the_prompt_a_candidate_is(prompt: str) -> None:
    stage = small_run.stage(start=Balls())
    scores = scored(stage, Balls().candidates(Step(0)), prompt)
    blue, _, red = scores.tolist()  # grey is no prompt's opposite
    assert red > blue if prompt == "red" else blue > red
    assert (scores <= 1).all()
    alone = torch.cat([scored(stage, [one], prompt) for one in Balls().candidates(Step(0))])
    torch.testing.assert_close(alone, scores, rtol=1e-4, atol=1e-5)


def test_a_prompt_that_says_nothing_prefers_nothing() -> None:
    """Both components are named, so the text tells the prior what it assumes anyway."""
    scores = scored(small_run.stage(), Balls().candidates(Step(0)), "red and blue")
    assert torch.equal(scores, torch.zeros(3))


def test_a_run_begins_with_the_chosen_one_and_does_not_choose_again() -> None:
    recipe = small_run.recipe(steps=0, start=Balls())
    begun = run(recipe, PROMPT, small_run.priors()).rep
    assert isinstance(begun, Gaussians)
    assert torch.equal(begun.colour_logits, ball(LEVELS[2]).colour_logits)
    state = {f"rep/{name}": tensor for name, tensor in begun.state().items()}
    on = small_run.recipe(steps=2, start=Balls())
    moved = run(on, PROMPT, small_run.priors(), stop=lambda: True)
    assert moved.index == 1
    again = small_run.recipe(steps=2, start=Never())
    saved = {f"rep/{name}": tensor for name, tensor in moved.rep.state().items()}
    ended = run(again, PROMPT, small_run.priors(), saved=Saved("shape", 1, saved))
    straight = run(on, PROMPT, small_run.priors())
    for name, tensor in straight.rep.state().items():
        assert torch.equal(tensor, ended.rep.state()[name]), name
    assert state.keys() <= saved.keys()


def test_an_edited_choice_has_the_chosen_one_as_its_source() -> None:
    seen = []

    def watch(step, rep, terms, out, numbers) -> None:
        seen.append(terms[0].source.rep.colour_logits.detach().clone())

    recipe = small_run.recipe(steps=1, start=Balls())
    run(recipe, Prompts("red", source="blue"), small_run.priors(), watchers=[watch])
    assert torch.equal(seen[0], ball(LEVELS[2]).colour_logits.detach())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP model in the layout of the real ones."""
    from transformers.models.clip.configuration_clip import CLIPConfig
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor
    from transformers.models.clip.modeling_clip import CLIPModel

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("clip")
    words = tokenizer()
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**layers, "vocab_size": len(words), "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config={**layers, "image_size": 32, "patch_size": 8}, projection_dim=8)
    ).save_pretrained(place)
    words.save_pretrained(place)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(place)
    return place


def test_a_clip_model_says_what_its_own_library_says(folder: Path) -> None:
    from transformers.models.clip.modeling_clip import CLIPModel

    clip = open_clip(folder)
    assert clip.size == 32
    images, texts = torch.rand(3, 32, 32, 3), ("a red cube", "front view")
    found = clip(images, texts)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    tokens = tokenizer()(list(texts), padding=True, return_tensors="pt")
    model = CLIPModel.from_pretrained(folder)
    theirs = model(**tokens, pixel_values=((images - mean) / std).permute(0, 3, 1, 2))
    torch.testing.assert_close(found, theirs.logits_per_image.detach() / model.logit_scale.exp().detach())
    assert found.abs().max() <= 1 + 1e-5
    torch.testing.assert_close(torch.cat([clip(one[None], texts) for one in images]), found)
    flat = torch.full((1, 80, 80, 3), 0.3)
    torch.testing.assert_close(clip(flat, texts), clip(flat[:, :32, :32], texts), rtol=1e-4, atol=1e-5)


def test_clip_ranks_by_what_it_finds_more_like_the_prompt_than_like_a_face(folder: Path) -> None:
    stage = small_run.stage()
    candidates = Balls().candidates(Step(0))
    scores = choosing.by_clip(candidates, "a red cube", stage.renderer, folder)
    clip: Clip = open_clip(folder)

    def by_hand(rep: Representation) -> float:
        cameras: Cameras = choosing.orbit((0.0, 40.0, -40.0), 10.0, 32)
        with torch.no_grad():
            out: RenderOutput = stage.renderer(rep, cameras, Background(torch.ones(3, 3)))
        said = clip(out.rgb, ("a red cube", "the face"))
        return float((said[:, 0] - said[:, 1]).mean())

    torch.testing.assert_close(scores, torch.tensor([by_hand(rep) for rep in candidates]), rtol=1e-4, atol=1e-6)
    recipe = small_run.recipe(steps=0, start=Balls(clip=str(folder)))
    begun = run(recipe, Prompts("red"), small_run.priors()).rep
    best = int(choosing.by_clip(candidates, "red", stage.renderer, folder).argmax())
    assert isinstance(begun, Gaussians)
    assert torch.equal(begun.colour_logits, ball(LEVELS[best]).colour_logits)


def test_what_is_no_clip_model_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no CLIP model at"):
        choosing.check(Balls(clip=str(tmp_path / "none")))
    (tmp_path / "config.json").write_text('{"architectures": ["CLIPTextModel"]}')
    with pytest.raises(ValueError, match="CLIPModel"):
        choosing.check(Balls(clip=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    with pytest.raises(FileNotFoundError, match="no weights"):
        choosing.check(Balls(clip=str(tmp_path)))
    choosing.check(Balls())
    choosing.check(Blob())
