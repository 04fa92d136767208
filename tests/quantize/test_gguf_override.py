"""``REGEX=TYPE``: the same types as ``llama-quantize --tensor-type``, the same bytes as planned, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.command import vlmexport
from tests.gguf_bundles import export, tensors
from tests.llama_quantize import llama_quantize
from tests.test_cli import assert_one_line_error
from vlmexport.errors import UsageError
from vlmexport.plan import plan
from vlmexport.quantize.gguf_mix import find_mix
from vlmexport.quantize.gguf_override import given_types, nearest, parse
from vlmexport.recipe import parse as parse_recipe
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

SHAPES = {
    "output.weight": (384, 256), "output_norm.weight": (256,), "token_embd.weight": (384, 256),
    "blk.0.attn_v.weight": (256, 256), "blk.0.attn_norm.weight": (256,), "blk.0.ffn_down.weight": (256, 288),
    "blk.1.attn_v.weight": (256, 256), "blk.1.ffn_down.weight": (256, 288),
}  # fmt: skip
EXPRESSIONS = (
    "attn_v",
    r"blk\.[01]\.",
    "ffn_(up|down)",
    r"blk\.0\.attn_v",
    r"ffn_down\.weight$",
    "^output",
    "embd",
    ".",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    folder = tmp_path_factory.mktemp("overrides")
    spec = tiny_spec(num_layers=4, intermediate_size=256, num_heads=4, num_kv_heads=1)
    checkpoint = open_checkpoint(write_checkpoint(folder / "tiny", spec))
    export(checkpoint, folder / "source", type="f16")
    return checkpoint, folder / "source" / "tiny-F16.gguf"


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    mix=st.sampled_from(["q2_k", "q3_k_m", "q4_k_s", "q4_0", "iq4_nl"]),
    texts=st.lists(
        st.builds("{}={}".format, st.sampled_from(EXPRESSIONS), st.sampled_from(["q4_0", "q8_0", "q6_k", "bf16"])),
        min_size=1,
        max_size=3,
    ),
)
def test_types_and_size_are_llama_quantizes_and_the_plans(
    source: tuple[Checkpoint, Path], tmp_path_factory: pytest.TempPathFactory, mix: str, texts: list[str]
) -> None:
    checkpoint, f16 = source
    folder = tmp_path_factory.mktemp("one")
    try:
        written = export(checkpoint, folder / "ours", type=mix, tensor_types=texts)
    except UsageError as error:
        assert "has no effect" in error.what
        reject()
    assert llama_quantize(f16, folder / "theirs.gguf", find_mix(mix).file_type, tensor_types=texts)
    ours, theirs = tensors(folder / "ours" / f"tiny-{mix.upper()}.gguf"), tensors(folder / "theirs.gguf")
    assert {name: kind for name, (kind, _) in ours.items()} == {name: kind for name, (kind, _) in theirs.items()}
    assert all(bytes(data) == bytes(theirs[name][1]) for name, (_, data) in ours.items())
    recipe = parse_recipe({"format": "gguf", "gguf": {"type": mix, "imatrix": "none", "tensor_types": texts}}, "test")
    assert plan(checkpoint, [recipe])[0].bytes == sum(file.bytes for file in written.files)
    default = find_mix(mix).default
    assert {name: kind for name, (kind, _) in ours.items() if kind != default}.items() <= written.tensors.items()
    assert written.recipe.gguf.tensor_types == tuple(texts)


def test_the_first_that_matches_wins() -> None:
    found = given_types([r"blk\.0\.attn_v=q8_0", "attn_v=Q6_K", "output=f16"], SHAPES)
    assert found == {"blk.0.attn_v.weight": "q8_0", "blk.1.attn_v.weight": "q6_k", "output.weight": "f16"}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["attn_v"], "'attn_v' is not REGEX=TYPE.*ffn_down=q6_k"),
        (["=q4_0"], "is not REGEX=TYPE"),
        (["attn_(v=q4_0"], "the expression is broken"),
        (["attn_v=q4_k_m"], "no type 'q4_k_m' of a tensor: did you mean 'q4_k'"),
        (["atn_v=q8_0"], r"'atn_v=q8_0' matches no tensor: the nearest are blk\.0\.attn_v\.weight, blk\.1\.attn_v"),
        ([r"blk\.9\.ffn_down=q8_0"], r"matches no tensor: the nearest are blk\.[01]\.ffn_down\.weight"),
        (["_norm=q8_0"], "matches only norms and biases, such as output_norm.weight: they stay f32"),
        ([".=q8_0", "attn_v=q6_k"], "'attn_v=q6_k' has no effect.*the first that matches wins"),
        (
            ["ffn_down=q4_k"],
            r"blk\.0\.ffn_down\.weight has rows of 288 values, q4_k needs a multiple of 256: give it q5_0",
        ),
    ],
)
def test_errors(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        given_types(texts, SHAPES)


def test_an_expression_may_hold_an_equals_sign() -> None:
    assert parse("(?=blk)attn=q8_0".replace("attn", ".*attn")).type == "q8_0"
    assert given_types(["^(?=blk).*attn_v=q8_0"], SHAPES).keys() == {"blk.0.attn_v.weight", "blk.1.attn_v.weight"}


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert len(nearest(text, list(SHAPES))) == 3
    try:
        found = given_types([text], SHAPES)
    except UsageError as error:
        assert error.cure
    else:
        assert found


def test_floats_can_be_given_blocks(tiny: Checkpoint, tmp_path: Path) -> None:
    """Where llama-quantize drops the wish without a word."""
    export(tiny, tmp_path / "bundle", type="f16", tensor_types=["ffn_down=q8_0"])
    found = tensors(tmp_path / "bundle" / "tiny-F16.gguf")
    assert {kind for name, (kind, _) in found.items() if "ffn_down" in name} == {"q8_0"}
    assert found["blk.0.ffn_up.weight"][0] == "f16"


@pytest.mark.slow
def test_a_type_that_needs_importance(tiny: Checkpoint, tmp_path: Path) -> None:
    for text in ("ffn_up=iq3_xxs", "embd=iq2_xs"):
        with pytest.raises(UsageError, match=r"q4_0 would make .* which needs an importance matrix"):
            export(tiny, tmp_path / "out", type="q4_0", tensor_types=[text])
    export(tiny, tmp_path / "out", type="q4_0", tensor_types=["embd=iq2_s"])


@pytest.mark.slow
def test_on_the_command_line(tiny_folder: Path, tmp_path: Path) -> None:
    options = ("--bits", "8", "--tensor-type", "attn_v=f16", "--tensor-type", r"blk\.\d+\.attn=bf16")
    result = vlmexport("gguf", tiny_folder, *options, "-o", tmp_path / "bundle", "--json")
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "bundle" / "vlmexport.json").read_text())
    assert manifest["recipe"]["gguf"]["tensor_types"] == ["attn_v=f16", r"blk\.\d+\.attn=bf16"]
    assert manifest["tensors"]["blk.0.attn_v.weight"] == "f16"
    assert manifest["tensors"]["blk.0.attn_q.weight"] == "bf16"
    planned = json.loads(vlmexport("plan", tiny_folder, *options, "--json").stdout)
    assert planned[0]["bytes"] == sum(file["bytes"] for file in manifest["files"])
    result = vlmexport("gguf", tiny_folder, "--type", "q8_0", "--tensor-type", "atn_v=q4_0", cwd=tmp_path)
    assert_one_line_error(result, 2, "matches no tensor", "blk.0.attn_v.weight")
