"""Bundles of before are read: what their manifest said is said by the manifest of today."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gguf_bundles import export
from tests.onnx_bundles import Bundles, picture
from tests.version_1 import as_before, document
from vlmexport.artifact.bundle.card import card
from vlmexport.artifact.bundle.halves import DECODER, LLAMA_CPP, ONNXRUNTIME, VISION
from vlmexport.artifact.bundle.manifest import Manifest, read_manifest
from vlmexport.artifact.bundle.staging import MANIFEST
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.calibrate import Sample
from vlmexport.errors import CheckpointError
from vlmexport.parity import check
from vlmexport.runtime.open import open_runtime
from vlmexport.source.checkpoint import Checkpoint

ENGINES = {
    "onnx": (ONNXRUNTIME, "int8", ONNXRUNTIME, "int8"), "gguf": (LLAMA_CPP, "f16", LLAMA_CPP, "1.5MB"),
    "hybrid": (ONNXRUNTIME, "fp32", LLAMA_CPP, "f32"),
}  # fmt: skip
FILES = {
    "onnx": (
        {"vision_encoder": "onnx/vision_encoder_int8.onnx", "projector": "components/projector_int8.onnx"},
        {"embed_tokens": "onnx/embed_tokens.onnx", "decoder_model_merged": "onnx/decoder_model_merged_int8.onnx",
         "tokenizer": "tokenizer.json"},
    ),
    "gguf": ({"mmproj": "mmproj-short-F16.gguf"}, {"language": "short-1.5MB.gguf"}),
    "hybrid": (
        {"vision_encoder": "onnx/vision_encoder.onnx", "projector": "components/projector.onnx"},
        {"language": "linear-F32.gguf"},
    ),
}  # fmt: skip


def read(folder: Path, old: dict[str, Any]) -> Manifest:
    (folder / MANIFEST).write_text(json.dumps(old), encoding="utf-8")
    return read_manifest(folder)


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    """What is said of onnxsim is of no use any more."""
    return {name: value for name, value in values.items() if name != key}


@pytest.mark.parametrize("kind", ENGINES)
def test_all_that_it_said(kind: str, tmp_path: Path) -> None:
    old = document(kind)
    found = read(tmp_path, old)
    assert found.kind == kind
    seeing, decoding = found.seeing, found.decoding
    assert (seeing.engine, seeing.precision, decoding.engine, decoding.precision) == ENGINES[kind]
    assert (seeing.files, decoding.files) == FILES[kind]
    assert [file.label for file in found.files] == [file["component"] for file in old["files"]]
    assert (found.source.spec.eos_token_id, found.stop_token_ids, found.max_images) == (2, (2,), 1)
    assert found.source.spec.vision.image_size == old["source"]["spec"]["vision"]["image_size"]
    assert (found.image_processor.side, found.image_processor.do_pad) == (found.source.spec.vision.image_size, True)
    assert list(found.image_processor.image_mean) == old["source"]["spec"]["vision"]["image_mean"]
    assert found.source.configuration["language"] == old["source"]["spec"]["language"]
    onnx, gates = without(old["recipe"]["onnx"], "simplify"), {**old["recipe"]["gates"], "features_local_nmse": None}
    changed = {"onnx": onnx, "gates": gates, "max_views": None}
    assert found.recipe.model_dump(mode="json") == old["recipe"] | changed
    assert (found.tensors, found.notes, found.tools) == (old["tensors"], old["notes"], old["tools"])
    told = {role: without(report, "onnxsim") for role, report in old["details"].get("report", {}).items()}
    assert {role: report.model_dump(exclude_none=True) for role, report in found.reports.items()} == told
    assert found.parity is not None
    assert found.parity.stages == old["parity"]["stages"]
    write_manifest(tmp_path, found)
    assert read_manifest(tmp_path) == found, "written anew it is of version 2"
    assert json.loads((tmp_path / MANIFEST).read_text())["schema_version"] == 2
    for words in ("Verdict: passed, on 20 held-out samples", *(f"`{file['path']}`" for file in old["files"])):
        assert words in card(found)


def test_sizes_budget_and_outputs(tmp_path: Path) -> None:
    old = document("gguf")
    found = read(tmp_path, old)
    sizes = {file["component"]: file["bytes"] for file in old["files"]}
    assert (found.size(VISION), found.size(DECODER)) == (sizes["vision+projector"], sizes["language"])
    assert found.decoding.budget is not None
    assert found.decoding.budget.model_dump(mode="json") == old["details"]["budget"]
    onnx = read(tmp_path, document("onnx"))
    assert onnx.seeing.output("features") == "features"
    assert (onnx.decoding.image_token_id, onnx.seeing.opset) == (384, 21)
    assert "language.lm_head" in (onnx.reports["decoder_model_merged"].pair_max or {})


def test_classes(tmp_path: Path) -> None:
    old = document("onnx")
    old["source"]["spec"]["language"]["classes"] = ["yes", "no"]
    assert read(tmp_path, old).classes == ("yes", "no")


@pytest.mark.parametrize(
    ("change", "said", "cure"),
    [
        (lambda old: old["details"]["graphs"].update(projector="../x"), "leads out of the bundle", "do not trust"),
        (lambda old: old["details"].update(tokenizer="/etc/passwd"), "leads out of the bundle", "do not trust"),
        (lambda old: old["files"][0].update(path="C:x"), "a colon", "do not trust"),
        (lambda old: old["details"].update(more=1), "details.more: Extra inputs", "export the bundle again"),
        (
            lambda old: old["source"]["spec"].pop("eos_token_id"),
            "eos_token_id: Field required",
            "export the bundle again",
        ),
        (lambda old: old["source"]["spec"].update(language=[]), "source.spec.language", "export the bundle again"),
        (lambda old: old.update(kind="tflite"), "kind: Input should be", "export the bundle again"),
    ],
)
def test_a_damaged_one(change: Callable[[dict[str, Any]], Any], said: str, cure: str, tmp_path: Path) -> None:
    old = document("onnx")
    change(old)
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, old)
    assert said in caught.value.what
    assert caught.value.cure.startswith(cure)
    assert "\n" not in str(caught.value)


def questions() -> list[Sample]:
    """Twenty, about one picture."""
    return [Sample(f"q{n}", "p", f"what is {n}?", lambda: picture(7, (336, 336)), answer="a chat") for n in range(20)]


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
@pytest.mark.parametrize("kind", ["onnx", "gguf"])
def test_it_runs_and_is_checked(kind: str, onnx_bundle: Bundles, short: Checkpoint, tmp_path: Path) -> None:
    new = onnx_bundle("int8") if kind == "onnx" else tmp_path / "new"
    if kind == "gguf":
        export(short, new, type="q8_0", mmproj_type="f16")
    old = as_before(new, tmp_path / "old", kind)
    tokens = []
    for bundle in (new, old):
        with closing(open_runtime(bundle)) as runtime:
            tokens.append(runtime.tokens(runtime.features(runtime.pixels(picture(3, (336, 336))))))
    assert np.array_equal(*tokens)
    result = check(old, samples=questions())
    assert result.kind == kind
    assert result.passed, [gate for gate in result.gates if not gate.passed]
    found = read_manifest(old)
    assert found.parity is not None
    assert (found.parity.passed, found.kind) == (True, kind)
