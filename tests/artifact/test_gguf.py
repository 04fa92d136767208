"""The GGUF bundle: files, metadata, tokenizer, chat template, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.gguf_bundles import export, metadata, random_statistics, tensors, value_types
from vlmexport.artifact.bundle.contents import verify
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.gguf import tokenizer as gguf_tokenizer
from vlmexport.artifact.gguf.rows import interleave
from vlmexport.errors import CheckpointError, Unsupported, UsageError
from vlmexport.processing.sentencepiece_tokenizer import SentencePieceTokenizer
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint


def test_bundle_holds_what_its_manifest_says(tiny: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    manifest = export(tiny, folder, random_statistics(tiny.spec.language), type="Q4_K_M", imatrix="auto")
    components = {file.path: file.role for file in manifest.files}
    assert components == {
        "imatrix.gguf": "imatrix", "mmproj-tiny-F16.gguf": "mmproj", "tiny-Q4_K_M.gguf": "language"
    }  # fmt: skip
    assert read_manifest(folder).model_dump(mode="json") == manifest.model_dump(mode="json")
    verify(folder, manifest)
    assert manifest.calibration is not None
    assert len(manifest.calibration.samples) == 2
    assert manifest.tensors["output.weight"] == "q6_k"
    assert manifest.tensors["v.position_embd.weight"] == "f32"
    assert "blk.0.attn_q.weight" not in manifest.tensors
    assert {"gguf", "llama-cpp-python"} <= set(manifest.tools)


def test_twice_the_same_bytes(tiny: Checkpoint, tmp_path: Path) -> None:
    statistics = random_statistics(tiny.spec.language)
    for name in ("a", "b"):
        export(tiny, tmp_path / name, statistics, type="q4_k_m", imatrix="auto")
    first, second = (sorted(path for path in (tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [path.name for path in first] == [path.name for path in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_language_metadata(tiny: Checkpoint, tmp_path: Path) -> None:
    export(tiny, tmp_path / "bundle", type="f16")
    path = tmp_path / "bundle" / "tiny-F16.gguf"
    found, types = metadata(path), value_types(path)
    assert found["general.architecture"] == "llama"
    assert found["llama.block_count"] == 2
    assert found["llama.vocab_size"] == len(found["tokenizer.ggml.tokens"]) == 384
    assert types["llama.rope.freq_base"] == types["llama.attention.layer_norm_rms_epsilon"] == ["FLOAT32"]
    assert types["tokenizer.ggml.scores"] == ["ARRAY", "FLOAT32"]
    assert types["tokenizer.ggml.token_type"] == ["ARRAY", "INT32"]
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (True, False)
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (1, 2)


def test_tensors_are_the_checkpoints(tiny: Checkpoint, tmp_path: Path) -> None:
    export(tiny, tmp_path / "bundle", type="f32", mmproj_type="f32")
    found = tensors(tmp_path / "bundle" / "tiny-F32.gguf")
    source = tiny.tensors["language"]
    query = source["model.layers.0.self_attn.q_proj.weight"].torch().float().numpy()
    assert np.array_equal(found["blk.0.attn_q.weight"][1].view(np.float32), interleave(query, 4).reshape(-1))
    assert np.array_equal(interleave(query, 4)[1], query[32])
    value = source["model.layers.0.self_attn.v_proj.weight"].torch().float().numpy()
    assert np.array_equal(found["blk.0.attn_v.weight"][1].view(np.float32), value.reshape(-1))
    assert len(found) == len(source)


class Vocabulary(SentencePieceTokenizer):
    """A tokenizer with added tokens."""

    def __init__(self, base: SentencePieceTokenizer, added: dict[str, int], special: frozenset[str]) -> None:
        super().__init__(base.path, added, special)


def test_tokenizer_rows(tiny: Checkpoint) -> None:
    base = tiny.tokenizer
    pieces = len(base)
    tokenizer = Vocabulary(base, {"<pad>": pieces, "<box>": pieces + 1, "<out>": 999}, frozenset({"<pad>"}))
    found = gguf_tokenizer.fields(tokenizer, tiny.spec, 400)
    texts, scores, kinds = (found[f"tokenizer.ggml.{key}"][1] for key in ("tokens", "scores", "token_type"))
    assert len(texts) == len(scores) == len(kinds) == 400
    assert (texts[0], kinds[0]) == ("<unk>", 2)
    assert (texts[1], kinds[1], kinds[2]) == ("<s>", 3, 3)
    assert (texts[3], kinds[3]) == ("<0x00>", 6)
    assert (texts[pieces], scores[pieces], kinds[pieces]) == ("<pad>", -1000.0, 3)
    assert (texts[pieces + 1], kinds[pieces + 1]) == ("<box>", 4)
    assert (texts[-1], kinds[-1]) == ("[PAD399]", 5)
    with pytest.raises(CheckpointError, match="only 100 rows"):
        gguf_tokenizer.fields(tokenizer, tiny.spec, 100)


def test_special_tokens_come_from_the_checkpoint(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", tiny_spec(num_layers=1, vocab_size=386), pieces=384)
    (folder / "added_tokens.json").write_text('{"<pad>": 385, "<box>": 384}')
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}, "pad_token": "<pad>"}')
    checkpoint = open_checkpoint(folder)
    kinds = gguf_tokenizer.fields(checkpoint.tokenizer, checkpoint.spec, 386)["tokenizer.ggml.token_type"][1]
    assert (kinds[385], kinds[384]) == (3, 4)


def test_refuses_before_it_writes(tmp_path: Path) -> None:
    for kind, reason in (("linear", "linear"), ("mlp3x_gelu", "mlp3x_gelu")):
        checkpoint = open_checkpoint(write_checkpoint(tmp_path / kind, tiny_spec(kind, num_layers=1)))
        with pytest.raises(Unsupported, match=reason):
            export(checkpoint, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))


def test_errors_of_a_user(tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown GGUF type"):
        export(tiny, tmp_path / "out", type="q4_k_x")
    with pytest.raises(UsageError, match="does not exist"):
        export(tiny, tmp_path / "out", type="q4_0", imatrix=str(tmp_path / "none.gguf"))
    export(tiny, tmp_path / "out", type="f16", imatrix="auto")
    with pytest.raises(UsageError, match="--force"):
        export(tiny, tmp_path / "out", type="f16")
    export(tiny, tmp_path / "out", type="f16", force=True)


def test_unknown_decoder(tiny: Checkpoint, tmp_path: Path) -> None:
    spec = replace(tiny.spec, language=replace(tiny.spec.language, kind="mamba"))
    with pytest.raises(Unsupported, match="mamba"):
        export(replace(tiny, spec=spec), tmp_path / "out")
