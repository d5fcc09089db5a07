"""The playroom: its language round-trips, its scenes are exact, its measures catch what is broken."""

import itertools

import numpy as np
import pytest
import torch

from sds3d.cameras import orbit, rays
from sds3d.core import Step
from sds3d.playroom import grammar, measures, network
from sds3d.playroom.data import training_specs
from sds3d.playroom.grammar import Head, Pair, Thing, Toy, caption, fill, is_determined, is_held_out, parse
from sds3d.playroom.render import render, trace
from sds3d.playroom.scenes import Part, Scene, build
from sds3d.playroom.shapes import sphere
from sds3d.representations.head_profile import LANDMARKS, skin_cm, to_cm, to_world

FULL_HEAD = Head("tan", "black", "blue", glasses=True, hat=True, beard=True, smile=True)
EVERYTHING = [
    *grammar.things(),
    *itertools.islice(grammar.pairs(), 0, None, 7),
    *grammar.toys(),
    *itertools.islice(grammar.heads(), 0, None, 5),
]


def test_every_caption_is_read_as_what_it_says() -> None:
    for spec in EVERYTHING:
        assert parse(caption(spec)) == spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("a cube", Thing("cube")),
        ("An  Orange Cone", Thing("cone", "orange")),
        ("a cube on top of a blue cylinder", Pair(Thing("cube"), Thing("cylinder", "blue"), "on top of")),
        ("a house", Toy("house")),
        ("a house with an orange roof", Toy("house", None, "orange")),
        ("a head", Head()),
        ("a head with a smile and glasses, black hair", Head(hair="black", glasses=True, smile=True)),
    ],
)
def test_open_and_loose_captions(text: str, spec: grammar.Spec) -> None:
    assert parse(text) == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a red cub", "cub.*Close words: .*cube"),
        ("a crimson sphere", "does not know: crimson.*--prior"),
        ("red cube", "no scene"),
        ("a red head", "no scene"),
        ("a car with a red roof", "wheels"),
        ("a head with purple hair", "black/brown"),
        ("a head with a red hat", 'no "a red hat"'),
    ],
)
def test_what_the_grammar_lacks_is_refused_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(text)


def test_a_word_is_a_token_and_the_longest_caption_fits() -> None:
    tokenizer = network.tokenizer()
    for word in grammar.words():
        assert len(tokenizer(word)["input_ids"]) == 3, word  # start, the word, end
    longest = f"{caption(FULL_HEAD)}, normals, front view, on yellow"
    assert len(tokenizer(longest)["input_ids"]) <= network.TEXT_LENGTH
    assert (
        tokenizer.decode(tokenizer(longest)["input_ids"], skip_special_tokens=True).split()
        == longest.replace(",", " ,").split()
    )


def test_a_tenth_is_held_out_and_never_trained_on() -> None:
    specs = [*grammar.things(), *grammar.pairs(), *grammar.toys(), *grammar.heads()]
    share = np.mean([is_held_out(spec) for spec in specs])
    assert abs(share - 0.1) < 3 * (0.09 / len(specs)) ** 0.5
    trained = {caption(spec) for specs in training_specs().values() for spec in specs}
    assert len(trained) == sum(not is_held_out(spec) for spec in specs)
    assert not any(is_held_out(parse(text)) for text in trained)


def test_what_is_left_open_is_filled_uniformly() -> None:
    drawn = [fill(Thing("cube"), Step(0, "fill", index)) for index in range(800)]
    counts = np.array([sum(thing.colour == colour for thing in drawn) for colour in grammar.COLOURS])
    assert ((counts - 100) ** 2 / 100).sum() < 24.3  # chi squared, 7 degrees of freedom, p = 0.001
    assert fill(Thing("cube", "red"), Step(0)) == Thing("cube", "red")
    assert all(is_determined(fill(spec, Step(1))) for spec in (Head(), Toy("car"), parse("a cube next to a cone")))


def test_an_open_caption_has_no_single_scene() -> None:
    with pytest.raises(ValueError, match="leaves a colour open"):
        build(Thing("cube"))


def test_a_sphere_is_drawn_as_geometry_says() -> None:
    """Silhouette, depth and normal of a sphere have closed forms for a pinhole."""
    radius, size = 0.6, 64
    camera = orbit([30.0], 20.0, size)
    out = render(Scene("ball", (Part(sphere(radius), (1.0, 0.0, 0.0)),)), camera, torch.ones(1, 3), samples=4)
    distance = float(camera.radius[0])
    tangent = radius / (distance**2 - radius**2) ** 0.5  # of the angle under which the sphere is seen
    area = np.pi * (tangent * float(camera.K[0, 0, 0])) ** 2
    assert abs(float(out.alpha.sum()) - area) / area < 0.01
    assert abs(float(out.depth[0, 31, 31]) - (distance - radius)) < 5e-3
    o, d = rays(camera)
    hit = out.alpha[..., 0] == 1
    points = o[hit] + out.depth[hit] * d[hit]
    outward = points / points.norm(dim=-1, keepdim=True)
    assert float((out.normal[hit] * outward).sum(-1).min()) > 0.995
    assert not out.normal[out.alpha[..., 0] == 0].any()


@pytest.mark.parametrize("spec", [Thing("torus", "red"), Toy("mug", "blue", "red"), FULL_HEAD])
def test_rays_end_on_the_surface(spec: grammar.Spec) -> None:
    scene = build(spec)
    o, d = (x.reshape(-1, 3) for x in rays(orbit([0.0, 130.0], 25.0, 32)))
    t = trace(scene, o, d)
    hit = t.isfinite()
    assert float(scene.distance(o[hit] + t[hit, None] * d[hit]).abs().max()) < 1.5e-3
    before = o[hit] + (t[hit, None] - 0.02) * d[hit]
    assert float(scene.distance(before).min()) > -1e-3  # nothing was stepped through


def test_the_background_shows_exactly_where_the_object_is_not() -> None:
    scene, camera = build(Toy("tree", "green", "orange")), orbit([40.0], 15.0, 32)
    white, black = (render(scene, camera, torch.full((1, 3), value)) for value in (1.0, 0.0))
    assert torch.allclose(white.rgb - black.rgb, (1 - white.alpha).expand(-1, -1, -1, 3), atol=1e-6)
    edges = (white.alpha > 0) & (white.alpha < 1)
    assert edges.any()  # silhouettes are antialiased


@pytest.mark.parametrize("kind", [*grammar.SHAPES, *grammar.TOYS, "head", "beside", "above"])
def test_every_scene_fits_the_picture(kind: str) -> None:
    specs: dict[str, grammar.Spec] = {
        "head": FULL_HEAD,
        "beside": Pair(Thing("torus", "red"), Thing("cone", "blue"), "next to"),
        "above": Pair(Thing("cone", "red"), Thing("cone", "blue"), "on top of"),
    }
    spec = specs.get(kind) or (Toy(kind, "red", "blue") if kind in grammar.TOYS else Thing(kind, "red"))
    alpha = render(build(spec), orbit([0.0, 45.0, 90.0, 225.0], 20.0, 64), torch.zeros(4, 3), samples=1).alpha
    assert 0.08 < float(alpha.mean()) < 0.6
    border = torch.cat([alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]], dim=1)
    assert float(border.max()) == 0


def test_the_pose_is_canonical() -> None:
    """ "A next to B" has A on the left as seen from the front; "on top of" is up; a face looks to +x."""
    left = build(Pair(Thing("cube", "red"), Thing("cube", "blue"), "next to")).parts
    assert left[0].solid(torch.tensor([0.0, -0.46, -0.1])) < 0 < left[1].solid(torch.tensor([0.0, -0.46, -0.1]))
    stack = build(Pair(Thing("cube", "red"), Thing("cube", "blue"), "on top of")).parts
    assert stack[0].solid(torch.tensor([0.0, 0.0, 0.3])) < 0 < stack[1].solid(torch.tensor([0.0, 0.0, 0.3]))
    eyes = torch.tensor([0.15, 0.40, 0.85])
    out = render(build(Head("light", "black", "blue")), orbit([0.0, 180.0], 0.0, 64), torch.ones(2, 3), samples=2)
    blue = (out.albedo - eyes).norm(dim=-1) < 0.05
    assert blue[0].any()
    assert not blue[1].any()


def test_a_head_is_symmetric_and_carries_its_landmarks() -> None:
    scene = build(FULL_HEAD)
    p = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mirrored = p * torch.tensor([1.0, -1.0, 1.0])
    assert torch.allclose(scene.distance(p), scene.distance(mirrored), atol=1e-4)
    assert scene.landmarks is LANDMARKS
    assert LANDMARKS.shape == (68, 3)
    assert torch.allclose(to_world(to_cm(LANDMARKS)), LANDMARKS, atol=1e-6)
    assert float(LANDMARKS[:, 0].min()) > -0.2  # all on the front
    assert torch.allclose(LANDMARKS[36] * torch.tensor([1.0, -1.0, 1.0]), LANDMARKS[45])
    away = skin_cm(to_cm(LANDMARKS)).abs()  # the profile has one column per 15 degrees, so it smooths nose and lips
    assert float(away.median()) < 0.6
    assert float(away.max()) < 2.5


def test_the_exact_scene_is_perfect_by_its_own_measures() -> None:
    spec = Toy("rocket", "white", "red")
    quality = measures.measure(spec, measures.scene_draw(build(spec)))
    assert quality.iou == 1
    assert quality.psnr > 60
    assert quality.haze < 0.02
    assert abs(quality.saturation - 1) < 1e-5
    assert not quality.counted


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [
        Head("light", "black", "blue"),
        Head("dark", "white", "brown", glasses=True),
        Head("tan", "blond", "green", hat=True),
    ],
)
def test_broken_heads_are_flagged_and_whole_ones_are_not(head: Head) -> None:
    whole = measures.measure(head, measures.scene_draw(build(head)))
    assert whole.counted
    assert not whole.two_faced
    assert not whole.faceless
    for name, (draw, flags) in measures.controls(head).items():
        assert flags(measures.measure(head, draw)), name
        assert not flags(whole), name
