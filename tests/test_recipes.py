"""Recipes that differ for splats and for meshes."""

from __future__ import annotations

import json

import pytest

from sds3d import recipes, schema
from sds3d.schema import RecipeError

SPLIT = """
stages: {one: {kind: of-a-mesh}}
exports: [glb]
splat: {exports: [ply]}
"""


def test_a_block_for_splats_stands_in_for_the_keys_it_has(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(SPLIT)
    assert recipes.read(str(file)) == {"stages": {"one": {"kind": "of-a-mesh"}}, "exports": ["glb"]}
    assert recipes.read(str(file), splat=True) == {"stages": {"one": {"kind": "of-a-mesh"}}, "exports": ["ply"]}


def test_a_block_for_splats_must_be_a_mapping(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("stages: {}\nsplat: [ply]\n")
    with pytest.raises(RecipeError, match="splat: is a mapping"):
        recipes.read(str(file))


@pytest.mark.parametrize("name", recipes.names())
def test_both_forms_of_a_shipped_recipe_are_whole(name):
    """They can be built, and written out they are the same."""
    for splat in (False, True):
        built = recipes.build(recipes.read(name, splat))
        assert recipes.build(json.loads(json.dumps(schema.to_data(built)))) == built
        assert built.about
