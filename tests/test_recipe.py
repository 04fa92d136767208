from __future__ import annotations

from pathlib import Path

import pytest

from vlmexport.errors import UsageError
from vlmexport.recipe import Recipe, gguf_recipe, keys, resolve, shipped


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_resolves(name: str) -> None:
    recipe = resolve(name, environ={})
    assert recipe.name == name
    assert recipe.gates.features_cosine is not None
    assert recipe.gates.answer_equal is not None


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('format = "gguf"\n[gguf]\ntype = "q8_0"\nimage_weight = 2.0\n')
    assert resolve(str(file), environ={}).gguf.type == "q8_0"
    environ = {"VLMEXPORT_GGUF_TYPE": "f16", "VLMEXPORT_GGUF_IMAGE_WEIGHT": "3"}
    recipe = resolve(str(file), environ=environ)
    assert (recipe.gguf.type, recipe.gguf.image_weight) == ("f16", 3.0)
    assert resolve(str(file), {"gguf.type": "q4_0", "target": None}, environ).gguf.type == "q4_0"


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[calibration]\nsample = 3\n")
    with pytest.raises(UsageError, match=r"'calibration\.sample'.*did you mean 'calibration\.samples'"):
        resolve(str(file))


def test_broken_toml_and_a_missing_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[calibration\n")
    with pytest.raises(UsageError, match="is not TOML"):
        resolve(str(file))
    with pytest.raises(UsageError, match="there is no recipe 'nope'"):
        resolve("nope")


def test_a_value_that_does_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[calibration]\nsamples = 0\n")
    with pytest.raises(UsageError, match=r"calibration\.samples"):
        resolve(str(file))


def test_gguf_recipe() -> None:
    assert gguf_recipe(None, None) == ("gguf-q4_k_m", {})
    assert gguf_recipe(None, 8) == ("gguf-q8_0", {})
    assert gguf_recipe("Q5_K_M", None) == ("gguf-q4_k_m", {"gguf.type": "q5_k_m", "name": "gguf-q5_k_m"})
    with pytest.raises(UsageError, match="both"):
        gguf_recipe("q8_0", 8)
    with pytest.raises(UsageError, match="--bits 7"):
        gguf_recipe(None, 7)


def test_keys_are_dotted_and_frozen() -> None:
    assert "gguf.type" in keys()
    with pytest.raises(ValueError, match="frozen"):
        Recipe().name = "x"  # type: ignore[misc]
