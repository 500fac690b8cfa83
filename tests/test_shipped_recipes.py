"""Every recipe that a plugin of this repository ships: it parses, fits what is installed, and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from dllm_core.training.recipes import find_recipes, load_recipe
from dllm_core.training.run import check_recipe

ROOT = Path(__file__).parents[1]
IN_THE_TREE = sorted(ROOT.glob("plugins/*/src/*/recipes/*.yaml"))
LONGEST_SUMMARY = 120


def test_all_are_found_under_their_plugins_names():
    assert {file.resolve() for file in find_recipes().values()} >= {file.resolve() for file in IN_THE_TREE}


@pytest.mark.parametrize("file", IN_THE_TREE, ids=lambda file: file.stem)
def test_a_recipe_can_be_started(file):
    recipe = load_recipe(file)
    check_recipe(recipe, elsewhere=True)  # many are for GPUs
    assert 0 < len(recipe.summary) <= LONGEST_SUMMARY
    assert recipe.training, "a recipe says how long and how fast"
    assert file.stem.startswith(file.parents[1].name.removeprefix("dllm_")), "names begin with the plugin's"
