from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlmexport.errors import UsageError
from vlmexport.flags import gguf_recipe, gguf_type, vision_flags
from vlmexport.recipe import COMPONENTS, Recipe, keys, parse, resolve, shipped


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_resolves(name: str) -> None:
    recipe = resolve(name, environ={})
    assert recipe.name == name
    assert recipe.gates.features_cosine is not None
    assert recipe.gates.answer_agreement is not None


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('format = "gguf"\n[gguf]\ntype = "q8_0"\n[calibration]\nimage_weight = 2.0\n')
    assert resolve(str(file), environ={}).gguf.type == "q8_0"
    environ = {"VLMEXPORT_GGUF_TYPE": "f16", "VLMEXPORT_CALIBRATION_IMAGE_WEIGHT": "3"}
    recipe = resolve(str(file), environ=environ)
    assert (recipe.gguf.type, recipe.calibration.image_weight) == ("f16", 3.0)
    assert resolve(str(file), {"gguf.type": "q4_0", "target": None}, environ).gguf.type == "q4_0"


@pytest.mark.parametrize("decoder", ["int4", "fp16"])
@pytest.mark.parametrize("base", ["fp32", "x86", "arm64", "web"])
def test_decoders_have_recipes_beside_each_base(decoder: str, base: str) -> None:
    """So the command line finds them by name."""
    recipe, beside = resolve(f"onnx-{base}-{decoder}", environ={}), resolve(f"onnx-{base}", environ={})
    how = {"decoder": decoder, "block": recipe.onnx.block, "rounding": recipe.onnx.rounding}
    assert recipe.onnx == beside.onnx.model_copy(update=how)
    assert (recipe.target, recipe.gates.tokens_cosine) == (beside.target, beside.gates.tokens_cosine)
    assert recipe.statistics_components == (COMPONENTS[:2] if recipe.onnx.vision == "int8" else ())


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
    assert gguf_recipe(None) == ("gguf-q4_k_m", {})
    assert gguf_recipe("q8_0") == ("gguf-q8_0", {})
    assert gguf_recipe("iq3_s") == ("gguf-q4_k_m", {"gguf.type": "iq3_s", "name": "gguf-iq3_s"})


def test_bits_pick_a_type_with_a_recipe_of_its_own() -> None:
    types = {bits: gguf_type(None, bits) for bits in (2, 3, 4, 5, 6, 8, 16, 32)}
    assert list(types.values()) == ["q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16", "f32"]
    for kind in types.values():
        name, flags = gguf_recipe(kind)
        assert (resolve(name, environ={}).gguf.type, flags) == (kind, {})
    assert (gguf_type("Q5_K_M", None), gguf_type(None, None)) == ("q5_k_m", None)
    with pytest.raises(UsageError, match="both"):
        gguf_type("q8_0", 8)
    with pytest.raises(UsageError, match="--bits 7"):
        gguf_type(None, 7)


OTHER = {
    "vision": "fp32", "decoder": "int4", "rounding": "gptq", "scheme": "qnnpack", "observer": "minmax", "type": "q8_0",
    "max_size": "8MB", "imatrix": "none", "mmproj_type": "q8_0", "block": "128", "head_bits": "4", "smooth": "false",
    "bias_correction": "true", "saturation": "none", "fuse": "false", "fallback": "predicted", "float_layers": "a.* b",
    "tensor_types": "a=f16 b=f16",
}  # fmt: skip


@pytest.mark.parametrize("section", ["calibration", "onnx", "gguf", "gates"])
def test_every_key_from_the_environment(section: str) -> None:
    """Text of another value than the default's; a number is given where the key is not listed."""
    for key, default in getattr(resolve("onnx-x86", environ={}), section):
        text = OTHER.get(key, "7") if (section, key) != ("gguf", "vision") else "onnx"
        environ = {f"VLMEXPORT_{section}_{key}".upper(): text}
        found = getattr(getattr(resolve("onnx-x86", environ=environ), section), key)
        assert found != default
        shown = " ".join(found) if isinstance(found, tuple) else str(found).lower().removesuffix(".0")
        assert shown == text.lower()


def test_a_budget_of_views_from_file_environment_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("max_views = 9\n")
    assert resolve(str(file), environ={}).max_views == 9
    environ = {"VLMEXPORT_MAX_VIEWS": "5"}
    assert resolve(str(file), environ=environ).max_views == 5
    assert resolve(str(file), {"max_views": 1}, environ).max_views == 1
    with pytest.raises(UsageError, match="max_views: Input should be greater than or equal to 1"):
        resolve(str(file), environ={"VLMEXPORT_MAX_VIEWS": "0"})


def test_tensor_types_from_file_environment_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('format = "gguf"\n[gguf]\ntype = "q8_0"\ntensor_types = ["attn_v=f16", "ffn_up=bf16"]\n')
    assert resolve(str(file), environ={}).gguf.tensor_types == ("attn_v=f16", "ffn_up=bf16")
    environ = {"VLMEXPORT_GGUF_TENSOR_TYPES": "attn_k=q8_0 ffn=q6_k"}
    assert resolve(str(file), environ=environ).gguf.tensor_types == ("attn_k=q8_0", "ffn=q6_k")
    assert resolve(str(file), {"gguf.tensor_types": ["a=f32"]}, environ).gguf.tensor_types == ("a=f32",)


@pytest.mark.parametrize(
    ("settings", "uses"),
    [
        ({"type": "Q8_0"}, False),
        ({"type": "F16"}, False),
        ({"type": "q4_0"}, True),
        ({"type": "q4_0", "imatrix": "none"}, False),
        ({"type": "q8_0", "tensor_types": ("ffn_down=Q4_K",)}, True),
        ({"type": "q8_0", "tensor_types": ("ffn_down=f16",)}, False),
    ],
)
def test_calibrates_only_for_types_that_use_it(settings: dict[str, Any], uses: bool) -> None:
    recipe = parse({"format": "gguf", "gguf": settings}, "test")
    assert recipe.gguf.uses_importance is recipe.needs_statistics is uses


def test_vision_flags() -> None:
    assert vision_flags(None, None, "gguf-f16", "gguf-f16") == {"gguf.vision": None, "gguf.mmproj_type": None}
    assert vision_flags("mmproj", "f32", "gguf-f16", "x") == {"gguf.vision": "mmproj", "gguf.mmproj_type": "f32"}


def test_an_mmproj_in_q8_0_has_gates_of_its_own() -> None:
    own = resolve("gguf-q8_0-mmproj", environ={}).gates
    found = resolve("gguf-f16", vision_flags(None, "q8_0", "gguf-f16", "gguf-f16"), {})
    assert (found.gguf.type, found.gguf.mmproj_type, found.gates) == ("f16", "q8_0", own)
    q4 = resolve("gguf-q4_0", vision_flags(None, "q8_0", "gguf-q4_0", "gguf-q4_0"), {}).gates
    assert (q4.tokens_cosine, q4.logits_agreement) == (own.tokens_cosine, 0.97)


def test_a_hybrid_is_held_to_the_gates_of_both() -> None:
    flags = vision_flags("onnx-arm64", None, "gguf-q4_k_m", "gguf-q5_k_m")
    found, vision = resolve("gguf-q4_k_m", flags, {}), resolve("onnx-arm64", environ={})
    assert (found.name, found.target, found.gguf.vision) == ("gguf-q5_k_m-onnx-arm64", "arm64", "onnx")
    assert (found.onnx, found.gates.tokens_sqnr_db) == (vision.onnx, vision.gates.tokens_sqnr_db)
    assert found.gates.logits_kld == resolve("gguf-q4_k_m", environ={}).gates.logits_kld
    exact = resolve("gguf-f32", vision_flags("onnx", None, "gguf-f32", "gguf-f32"), {})
    assert (exact.name, exact.gates.logits_agreement) == (
        "gguf-f32-onnx-x86",
        resolve("onnx-x86", environ={}).gates.logits_agreement,
    )
    assert exact.gates.logits_max_abs is None
    assert (found.statistics_components, exact.statistics_components) == (COMPONENTS, COMPONENTS[:2])
    with pytest.raises(UsageError, match="is no ONNX recipe"):
        vision_flags("gguf-f16", None, "gguf-f32", "gguf-f32")


def test_keys_are_dotted_and_frozen() -> None:
    assert "gguf.type" in keys()
    with pytest.raises(ValueError, match="frozen"):
        Recipe().name = "x"  # type: ignore[misc]


def test_gates_behind_a_model_that_rounds() -> None:
    exact = resolve("onnx-fp32", environ={}).gates
    behind = exact.behind_rounding()
    assert (behind.logits_max_abs, behind.logits_kld, behind.tokens_nmse) == (None, 1e-6, 1e-5)
    changed = {"logits_max_abs", "logits_kld", "tokens_nmse"}
    assert behind.model_dump(exclude=changed) == exact.model_dump(exclude=changed)
    int8 = resolve("onnx-x86", environ={}).gates
    assert int8.behind_rounding() == int8
