"""The mixes: types and bytes equal to ``llama_model_quantize``, with and without importance matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import tiny_spec, write_checkpoint, write_design
from tests.gguf_bundles import export, metadata, random_statistics, tensors
from tests.llama_quantize import F32, llama_quantize
from vlmexport.artifact.gguf.imatrix import from_statistics
from vlmexport.artifact.gguf.language import importance_names
from vlmexport.calibrate import Statistics
from vlmexport.checkpoint.rope import RopeScaling
from vlmexport.errors import UsageError
from vlmexport.quantize.gguf_mix import find_mix, in_order, mixes, needs_importance, tensor_types
from vlmexport.quantize.gguf_rules import Decoder
from vlmexport.recipe import Calibration
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint
from vlmexport.source.locate import open_model

PROMISED = ("q4_0", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "iq4_xs")
DEMANDING = ("iq2_s", "iq3_xxs")
QUICK = ("q4_0", "q4_k_m")
SHAPES = {
    "grouped": {"num_layers": 8, "intermediate_size": 256, "num_kv_heads": 1},
    "odd rows": {
        "num_layers": 1,
        "hidden_size": 96,
        "intermediate_size": 272,
        "num_heads": 3,
        "num_kv_heads": 3,
        "head_dim": 32,
    },
    "tied": {"num_layers": 1, "intermediate_size": 288, "tie_word_embeddings": True},
    "llama3": {"num_layers": 1, "rope_scaling": RopeScaling("llama3", 8.0)},
    "qwen2": {"kind": "qwen2", "num_layers": 3, "num_kv_heads": 1, "tie_word_embeddings": True},
    "gpt2": {"kind": "gpt2", "num_layers": 8, "intermediate_size": 256, "rope_theta": 0.0, "hidden_act": "gelu_new"},
}


@dataclass
class Case:
    checkpoint: Checkpoint
    f16: Path
    statistics: Statistics
    means: dict[str, F32]


def case_of(checkpoint: Checkpoint, folder: Path) -> Case:
    export(checkpoint, folder, type="f16")
    language = checkpoint.spec.language
    statistics = random_statistics(language)
    columns = from_statistics(statistics, importance_names(language), Calibration().image_weight).columns
    means = {name: column.mean for name, column in columns.items()}
    return Case(checkpoint, folder / f"{checkpoint.spec.name}-F16.gguf", statistics, means)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Decoders on which every rule of the mixes shows: eighths of layers, grouped heads, fallbacks, a tied output;
    and the demo."""
    made: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in made:
            folder = tmp_path_factory.mktemp("mixes")
            found = open_model("demo") if name == "demo" else open_checkpoint(
                write_design(folder / "tiny", tiny_spec(**SHAPES[name]))
            )  # fmt: skip
            made[name] = case_of(found, folder / "source")
        return made[name]

    return get


def compare(case: Case, folder: Path, mix: str, important: bool) -> None:
    ours, theirs = folder / "ours", folder / "theirs.gguf"
    if important:
        export(case.checkpoint, ours, case.statistics, type=mix, imatrix="auto")
    else:
        export(case.checkpoint, ours, type=mix)
    assert llama_quantize(case.f16, theirs, find_mix(mix).file_type, case.means if important else None)
    written = ours / f"{case.checkpoint.spec.name}-{mix.upper()}.gguf"
    same(theirs, written)
    assert metadata(written) == metadata(theirs)


def same(theirs: Path, ours: Path) -> None:
    expected, found = tensors(theirs), tensors(ours)
    assert list(found) == list(expected)
    assert {name: kind for name, (kind, _) in found.items()} == {name: kind for name, (kind, _) in expected.items()}
    for name, (_, data) in found.items():
        assert np.array_equal(data, expected[name][1]), name


@pytest.mark.parametrize(
    "mix",
    [
        pytest.param(name, marks=pytest.mark.slow) if name not in QUICK else name
        for name in mixes()
        if name not in ("f32", "f16")
    ],
)
@pytest.mark.parametrize("important", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_llama_model_quantize(
    shape: str, important: bool, mix: str, cases: Callable[[str], Case], tmp_path: Path
) -> None:
    case = cases(shape)
    if important or mix not in DEMANDING or shape == "odd rows":
        compare(case, tmp_path, mix, important)
        return
    with pytest.raises(UsageError, match=rf"{mix} would make blk\.0\.\w+\.weight iq\w+, which needs an importance"):
        export(case.checkpoint, tmp_path / "out", type=mix)
    assert not llama_quantize(case.f16, tmp_path / "theirs.gguf", find_mix(mix).file_type)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mix", [*PROMISED, "q2_k", "q3_k_m", "iq4_nl"])
@pytest.mark.parametrize("important", [True, False])
def test_equals_on_the_demo(important: bool, mix: str, cases: Callable[[str], Case], tmp_path: Path) -> None:
    compare(cases("demo"), tmp_path, mix, important)


def test_from_an_f32_source(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "tiny", tiny_spec(num_layers=1)))
    export(checkpoint, tmp_path / "source", type="f32")
    export(checkpoint, tmp_path / "ours", type="q5_k_m")
    assert llama_quantize(tmp_path / "source" / "tiny-F32.gguf", tmp_path / "theirs.gguf", 17)
    same(tmp_path / "theirs.gguf", tmp_path / "ours" / "tiny-Q5_K_M.gguf")


def test_unknown_mix_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'q4_k_m'"):
        find_mix("Q4_KM")


def test_q4_k_m_of_mobilevlm() -> None:
    """24 layers as in the 1.7B model: 12 of them carry more bits in value and down projections."""
    shapes = {f"blk.{i}.{part}.weight": (2048, 2048) for i in range(24) for part in ("attn_v", "ffn_down", "ffn_up")}
    shapes |= {"output.weight": (32000, 2048), "token_embd.weight": (32000, 2048), "output_norm.weight": (2048,)}
    types = tensor_types(find_mix("q4_k_m"), shapes, Decoder(24, 1), importance=False)
    more = [i for i in range(24) if types[f"blk.{i}.attn_v.weight"] == "q6_k"]
    assert more == [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
    assert types["output.weight"] == "q6_k"
    assert types["token_embd.weight"] == types["blk.3.ffn_up.weight"] == "q4_k"
    assert types["output_norm.weight"] == "f32"


def test_seventy_billion() -> None:
    """80 layers with grouped heads: value projections take five bits, but for the mixes that llama.cpp leaves out."""
    shapes = {f"blk.{i}.attn_v.weight": (1024, 8192) for i in range(80)}
    kinds = {mix: tensor_types(find_mix(mix), shapes, Decoder(80, 8), True)["blk.40.attn_v.weight"] for mix in mixes()}
    assert {mix for mix, kind in kinds.items() if kind == "q5_k"} == {
        "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "iq3_xxs", "iq3_s", "iq4_nl",
        "iq4_xs",
    }  # fmt: skip
    assert kinds["iq2_s"] == "q4_k"


def test_which_types_need_importance() -> None:
    assert needs_importance("blk.0.attn_q.weight", "iq2_s")
    assert not needs_importance("token_embd.weight", "iq2_s")
    assert needs_importance("token_embd.weight", "iq2_xs")  # the kernel would abort the process
    assert not needs_importance("blk.0.attn_q.weight", "iq3_s")


def test_order_is_by_layer_number() -> None:
    names = ["blk.10.a", "blk.9.b", "token_embd.weight", "output.weight", "blk.9.a"]
    assert in_order(names) == ["output.weight", "token_embd.weight", "blk.9.a", "blk.9.b", "blk.10.a"]
