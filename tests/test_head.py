"""The head template: the playroom's head, closed and alike for all identities; its shapes do what they say."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import Tensor

from sds3d.cameras import orbit, world_to_camera
from sds3d.core import Background
from sds3d.playroom import grammar
from sds3d.playroom.render import render
from sds3d.playroom.scenes import Scene, build
from sds3d.renderers.raster import Raster, zbuffer
from sds3d.representations import expressions
from sds3d.representations.expressions import ARKIT, FIELDS, GAZES, HINGE_CM, PAIRS
from sds3d.representations.head import Identity, Template, head
from sds3d.representations.head_mesh import head_mesh
from sds3d.representations.head_points import nearest
from sds3d.representations.head_profile import EYE_CM, LANDMARKS, UNIT_CM, to_cm
from sds3d.representations.mesh import edges
from sds3d.representations.texture import texels

MIRROR = torch.tensor([1.0, -1.0, 1.0])  # of the world
PLAIN = Identity()
ODD = Identity(0.7, -0.5, 0.3, 0.8, 1.0, 0.9, -1.0, 0.6, -0.7, 1.0, 0.9, -0.8)


@functools.cache
def template(identity: Identity = PLAIN) -> Template:
    return head(identity)


@functools.cache
def partners() -> Tensor:
    """The vertex on the other side for each vertex of the measured head."""
    vertices = template().vertices
    return torch.cdist(vertices * MIRROR, vertices).argmin(dim=1)


def bare() -> Scene:
    """The playroom's head without hair."""
    scene = build(grammar.Head("light", "black", "blue"))
    return Scene(scene.caption, (scene.parts[0], *scene.parts[2:]))


def moved(name: str, identity: Identity = PLAIN) -> Tensor:
    """A shape's displacement in the measured frame, in centimetres."""
    return template(identity).shapes[name][:, [1, 2, 0]] * UNIT_CM


@pytest.mark.parametrize("identity", [PLAIN, ODD], ids=["measured", "odd"])
def test_it_is_three_closed_surfaces_that_face_outward(identity: Identity) -> None:
    it = template(identity)
    beside = edges(it.faces)
    assert (beside.faces >= 0).all()
    directed = torch.cat([it.faces[:, [i, (i + 1) % 3]] for i in range(3)])
    assert len(torch.unique(directed, dim=0)) == len(directed), "each direction of an edge comes once"
    assert len(it.vertices) - len(beside.ends) + len(it.faces) == 2 * 3, "a skin and two eyes, all spheres (Euler)"
    for name, eye in (("left eye", 1), ("right eye", -1)):
        mine = torch.isin(it.faces, it.regions[name]).all(dim=1)
        a, b, c = it.vertices[it.faces[mine]].double().unbind(1)
        volume = (a * torch.linalg.cross(b, c)).sum() / 6
        assert volume > 0
        assert it.vertices[it.regions[name], 1].mean().sign() == eye
    a, b, c = it.vertices[it.faces].double().unbind(1)
    assert (a * torch.linalg.cross(b, c)).sum() > 0
    assert it.vertices.norm(dim=1).max() < 1


def test_all_identities_have_one_topology() -> None:
    one, other = template(), template(ODD)
    assert torch.equal(one.faces, other.faces)
    assert torch.equal(one.uv_faces, other.uv_faces)  # type: ignore[arg-type]
    assert torch.equal(one.landmarks.face, other.landmarks.face)
    assert list(one.shapes) == list(other.shapes)
    assert (one.vertices - other.vertices).abs().max() > 0.02


@pytest.mark.parametrize("identity", [PLAIN, ODD], ids=["measured", "odd"])
def test_its_halves_are_mirror_images(identity: Identity) -> None:
    it = template(identity)
    torch.testing.assert_close(it.vertices[partners()], it.vertices * MIRROR, rtol=0, atol=1e-6)
    assert torch.equal(partners()[partners()], torch.arange(len(it.vertices)))

    def unordered(faces: Tensor) -> set[tuple[int, ...]]:
        least = faces.argmin(dim=1, keepdim=True)
        return {tuple(face) for face in faces.gather(1, (least + torch.arange(3)) % 3).tolist()}

    assert unordered(partners()[it.faces].flip(1)) == unordered(it.faces)
    points = it.landmarks.at(it.vertices, it.faces)
    torch.testing.assert_close(points[36] * MIRROR, points[45], rtol=0, atol=1e-5)


def test_its_surface_is_the_one_that_the_playroom_draws() -> None:
    it, scene = template(), bare()
    seen = torch.isin(it.faces, torch.cat([it.regions["skin"], it.regions["lips"]])).all(dim=1)
    corners = it.vertices[it.faces[seen]]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1)
    away = torch.stack([scene.distance(corners.mean(dim=1)), *scene.distance(corners.transpose(0, 1))]).abs()
    mean = (away.mean(dim=0) * area).sum() / area.sum()
    assert mean < 5e-4, "a thousandth of the head's height is 0.0015"


@pytest.mark.parametrize("azimuth", [0.0, 50.0, 90.0, 180.0])
def test_its_silhouette_is_the_playrooms(azimuth: float) -> None:
    cameras, white = orbit([azimuth], 10.0, 96), torch.ones(1, 3)
    exact = render(bare(), cameras, white, samples=2).alpha
    ours = Raster()(template().mesh(), cameras, Background(white)).alpha
    assert torch.minimum(exact, ours).sum() / torch.maximum(exact, ours).sum() > 0.985


def test_landmarks_lie_on_the_surface_near_the_measured() -> None:
    it = template()
    points = it.landmarks.at(it.vertices, it.faces)
    assert it.landmarks.ids == tuple(range(68))
    torch.testing.assert_close(it.landmarks.weights.sum(dim=1), torch.ones(68))
    away = (points - LANDMARKS).norm(dim=1) * UNIT_CM
    eyes = torch.zeros(68, dtype=torch.bool)
    eyes[36:48] = True
    assert away[~eyes].max() < 0.4, "centimetres"
    assert away[eyes].max() < 0.8, "the eyes are larger than measured, as the playroom's are"
    y = points[:, 2]
    assert (y[[37, 38, 43, 44]] > y[[41, 40, 47, 46]]).all(), "upper lids above the lower"
    assert (y[61:64] > y[[67, 66, 65]]).all(), "the lips are apart"


def test_contours_are_on_the_side_and_in_the_order_that_mediapipe_names() -> None:
    it = template()
    at = dict(zip(it.contours.ids, it.contours.at(it.vertices, it.faces), strict=True))
    assert len(at) == 36 + 20 + 40 + 32 + 2
    for right, left in ((33, 263), (61, 291), (234, 454), (468, 473), (105, 334)):
        assert at[right][1] < 0
        torch.testing.assert_close(at[right] * MIRROR, at[left], rtol=0, atol=2e-5)
    assert at[10][2] > at[168 if 168 in at else 105][2] > at[159][2] > at[145][2] > at[13][2] > at[14][2] > at[152][2]
    for mine, theirs in ((33, 36), (133, 39), (61, 48), (13, 62), (14, 66), (0, 51), (17, 57)):
        away = at[mine] - it.landmarks.at(it.vertices, it.faces)[theirs]
        assert away.norm() * UNIT_CM < 0.45, (mine, theirs)


def test_the_warp_of_an_identity_never_folds_space() -> None:
    generator = torch.Generator().manual_seed(0)
    vertices = head_mesh().vertices[::40]
    extremes = [torch.randint(0, 2, (12,), generator=generator) * 2.0 - 1 for _ in range(12)]
    for numbers in [torch.ones(12), -torch.ones(12), *extremes]:
        warp = Identity(*numbers.tolist()).warp
        jacobian = torch.func.vmap(torch.func.jacrev(lambda q, warp=warp: warp(q[None])[0]))(vertices)
        assert torch.linalg.det(jacobian).min() > 0.3
    assert torch.equal(PLAIN.warp(vertices), vertices)


def test_each_number_of_an_identity_moves_what_it_names() -> None:
    rest = template().landmarks.at(template().vertices, template().faces)

    def points(**number: float) -> Tensor:
        it = head(Identity(**number))
        return it.landmarks.at(it.vertices, it.faces)

    assert points(nose=1)[30, 0] > rest[30, 0]
    assert points(chin=1)[8, 0] > rest[8, 0]
    assert points(jaw=1)[12, 1] > rest[12, 1]
    assert points(mouth=1)[54, 1] > rest[54, 1]
    height = lambda p: p[43, 2] - p[47, 2]  # noqa: E731
    assert height(points(eyes=1)) > height(rest) > height(points(eyes=-1))


def test_texture_places_never_overlap_and_are_not_mirrored() -> None:
    it = template()
    assert it.uv is not None and it.uv_faces is not None
    assert it.uv.min() >= 0 and it.uv.max() <= 1
    a, b, c = it.uv[it.uv_faces].double().unbind(1)
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    assert (area > 0).all()
    at, _, shares = texels(it.uv, it.uv_faces, 512)
    at = at[shares.amin(dim=1) > 1e-4]  # without those on an edge, which two triangles share
    assert len(torch.unique(at)) == len(at)
    assert it.textured(32).size == 32


def test_the_names_are_arkits_and_left_is_the_mirror_image_of_right() -> None:
    shapes = template(ODD).shapes
    assert tuple(shapes) == ARKIT
    assert len(set(ARKIT)) == 51
    for name in ARKIT:
        assert shapes[name].isfinite().all()
        assert shapes[name].abs().max() > 0.005, name
        stem = name.removesuffix("Left").removesuffix("Right")
        other = {f"{stem}Left": f"{stem}Right", f"{stem}Right": f"{stem}Left"}.get(name, name)
        torch.testing.assert_close(shapes[name] * MIRROR, shapes[other][partners()], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", [f"{name}Left" for name in (*GAZES, *PAIRS) if name != "mouth"])
def test_a_shape_of_one_side_leaves_the_other_alone(name: str) -> None:
    assert moved(name)[head_mesh().vertices[:, 0] < -1].abs().max() == 0


@pytest.mark.parametrize("name", [*FIELDS, *(f"{pair}Left" for pair in PAIRS)])
def test_a_measured_field_moves_what_was_measured(name: str) -> None:
    """Where the energy is, and on the whole where to."""
    field = FIELDS.get(name) or PAIRS[name.removesuffix("Left")]
    energy = moved(name).square().sum(dim=1, keepdim=True).double()
    q = head_mesh().vertices
    if field.twice:
        energy = energy * (q[:, :1] > 0)
    middle = (energy * q).sum(dim=0) / energy.sum()
    assert (middle - torch.tensor(field.centre)).norm() < field.reach
    mean = (energy * moved(name)).sum(dim=0) / energy.sum()
    wanted = torch.tensor(field.mean, dtype=torch.float64)
    assert torch.cosine_similarity(mean, wanted, dim=0) > 0.85
    assert 0.4 < mean.norm() / wanted.norm() < 2


def test_the_jaw_turns_about_its_hinge() -> None:
    q = head_mesh().vertices
    chin = (q - to_cm(LANDMARKS[8]).double()).norm(dim=1).argmin()
    hinge = torch.tensor(HINGE_CM, dtype=torch.float64)
    before, after = q[chin, 1:] - hinge, (q + moved("jawOpen").double())[chin, 1:] - hinge
    assert after.norm() == pytest.approx(float(before.norm()), abs=1e-4)
    angle = torch.rad2deg(torch.atan2(-after[0], after[1]) - torch.atan2(-before[0], before[1]))
    assert angle == pytest.approx(25.3, abs=1.5)
    points = lambda **w: template().landmarks.at(template().posed(w), template().faces)  # noqa: E731
    rest, opened, closed = points(), points(jawOpen=1.0), points(jawOpen=1.0, mouthClose=1.0)
    assert opened[8, 2] < rest[8, 2] - 0.1
    assert opened[62, 2] - opened[66, 2] > 0.15
    torch.testing.assert_close(opened[27:31], rest[27:31], rtol=0, atol=1e-6)
    torch.testing.assert_close(closed[48:], rest[48:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("identity", [PLAIN, ODD], ids=["measured", "odd"])
def test_no_face_turns_the_skin_inside_out(identity: Identity) -> None:
    it = template(identity)
    faces = it.faces[torch.isin(it.faces, it.regions["skin"]).all(dim=1)]

    def normals(vertices: Tensor) -> Tensor:
        a, b, c = vertices[faces].unbind(1)
        return torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)

    rest = normals(it.vertices)
    for name in ARKIT:
        with_it = {"jawOpen": 1.0} if name == "mouthClose" else {}  # which undoes it, and never stands alone
        assert (normals(it.posed({name: 1.0, **with_it})) * rest).sum(dim=1).min() > 0, name


@pytest.mark.parametrize("identity", [PLAIN, ODD], ids=["measured", "odd"])
def test_a_smile_raises_the_corners_of_the_mouth(identity: Identity) -> None:
    it = template(identity)
    height = it.vertices[:, 2].max() - it.vertices[:, 2].min()
    smile = it.landmarks.at(it.posed({"mouthSmileLeft": 1.0, "mouthSmileRight": 1.0}), it.faces)
    rise = (smile - it.landmarks.at(it.vertices, it.faces))[[48, 54], 2]
    assert (rise >= 0.02 * height).all()


@pytest.mark.parametrize("identity", [PLAIN, ODD], ids=["measured", "odd"])
def test_a_blink_hides_the_eye_and_only_its_lids_move(identity: Identity) -> None:
    it = template(identity)
    cameras = orbit([-30.0, 0.0, 40.0], 5.0, 256, 3.0, 20.0)
    w2c = world_to_camera(cameras)

    def seen(weights: dict[str, float], name: str) -> int:
        local = torch.einsum("bij,vj->bvi", w2c[:, :3, :3], it.posed(weights)) + w2c[:, None, :3, 3]
        ids = zbuffer(local, it.faces, cameras)
        ball = torch.isin(it.faces, it.regions[name]).all(dim=1)
        return int(ball[ids[ids >= 0]].sum())

    blink = {"eyeBlinkLeft": 1.0}
    assert seen({}, "left eye") > 1000
    assert seen(blink, "left eye") <= 0.01 * seen({}, "left eye")
    assert seen(blink, "right eye") == seen({}, "right eye")
    assert seen({}, "left eye") > seen({"eyeBlinkLeft": 0.5}, "left eye") > seen({"eyeBlinkLeft": 0.8}, "left eye")
    still = torch.ones(len(it.vertices), dtype=torch.bool)
    still[it.regions["skin"]] = still[it.regions["left socket"]] = False
    assert it.shapes["eyeBlinkLeft"][still].abs().max() == 0


@pytest.mark.parametrize(("name", "way"), [("Up", (0, 1)), ("Down", (0, -1)), ("Out", (1, 0)), ("In", (-1, 0))])
def test_an_eye_turns_in_its_socket(name: str, way: tuple[int, int]) -> None:
    ball = template().regions["left eye"]
    p = head_mesh().vertices[ball] - torch.tensor(EYE_CM)
    after = p + moved(f"eyeLook{name}Left")[ball]
    torch.testing.assert_close(after.norm(dim=1), p.norm(dim=1), rtol=0, atol=1e-5)
    pupil = after[p[:, 2].argmax()]
    assert (pupil[:2] * torch.tensor(way)).sum() > 0.6
    assert abs(float((pupil[:2] * torch.tensor(way).flip(0)).sum())) < 1e-5


def test_shapes_are_the_same_in_any_order_of_points() -> None:
    mesh = head_mesh()
    order = torch.randperm(len(mesh.vertices), generator=torch.Generator().manual_seed(0))[:500]
    some = expressions.shapes(mesh.vertices[order], mesh.part[order])
    for name, whole in expressions.shapes(mesh.vertices, mesh.part).items():
        torch.testing.assert_close(some[name], whole[order])


def test_nearest_finds_the_nearest_of_a_fine_sampling() -> None:
    generator = torch.Generator().manual_seed(0)
    vertices, points = torch.rand(12, 3, generator=generator), torch.rand(20, 3, generator=generator)
    faces = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]])
    face, weights = nearest(points, vertices, faces)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(20))
    found = (weights[..., None] * vertices[faces[face]]).sum(dim=1)
    n = 60
    grid = torch.tensor(
        [(i / n, j / n, 1 - (i + j) / n) for i, j in itertools.product(range(n + 1), repeat=2) if i + j <= n]
    )
    sampled = (grid[:, None, :, None] * vertices[faces][None]).sum(dim=2).flatten(0, 1)
    best = torch.cdist(points, sampled).amin(dim=1)
    ours = (points - found).norm(dim=1)
    assert (ours <= best + 1e-6).all()
    assert (best - ours).max() < 0.02


def test_what_is_out_of_range_or_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nose of a head must lie in \[-1, 1\], given 2"):
        Identity(nose=2)
    with pytest.raises(ValueError, match='no blendshape "jawopen".* Did you mean "jawOpen"'):
        template().posed({"jawopen": 1.0})
    with pytest.raises(ValueError, match='no region "hair"; it has: skin, lips, mouth'):
        template().mesh({"hair": (0.0, 0.0, 0.0)})


def test_regions_are_painted_and_irises_are_the_playrooms() -> None:
    it, scene = template(), bare()
    blue = (0.15, 0.40, 0.85)
    mesh = it.mesh({"left eye": (1.0, 1.0, 1.0), "left iris": blue, "left pupil": (0.03, 0.03, 0.03)})
    rows = it.regions["left eye"]
    front = rows[it.vertices[rows, 0] > it.vertices[rows, 0].mean() + 0.05]
    exact = scene.parts[2].rgb(it.vertices[front])  # type: ignore[operator]
    assert (exact[:, 2] > exact[:, 0] + 0.5).any(), "blue"
    torch.testing.assert_close(mesh.rgb[front], exact, rtol=0, atol=0.04)
    assert (mesh.rgb[it.regions["skin"]] == 0.5).all()
