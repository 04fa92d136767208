"""What users do with a FastVLM and its bundles: check, run, bench, plan, compare, new; and damaged bundles are red."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("timm", reason="timm is not installed")

from tests.command import vlmexport
from tests.fast_vlm_bundles import LAYOUTS, questions
from tests.mutations.copies import Mutant, failed
from tests.onnx_bundles import Bundles, picture
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.measures.stage_result import STAGES
from vlmexport.parity import check

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_answers")]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("image") / "picture.png"
    picture(5).save(file)
    return file


def asked(model: Path, image: Path) -> str:
    done = vlmexport("run", model, "what is the chat ?", "-i", image, "--max-new-tokens", "6", "--json")
    assert done.returncode == 0, done.stderr
    answer: str = json.loads(done.stdout)["answer"]
    return answer


@pytest.mark.parametrize(("layout", "names"), [("hf", ["fp32"]), ("apple", ["apple-fp32", "apple-hybrid"])])
def test_run(layout: str, names: list[str], fast_vlm_bundle: Bundles, fast_vlm_root: Path, image: Path) -> None:
    expected = asked(fast_vlm_root / layout, image)
    assert [asked(fast_vlm_bundle(name), image) for name in names] == [expected] * len(names)


def test_plan(fast_vlm_bundle: Bundles, fast_vlm_root: Path) -> None:
    """Bytes of a bundle within two percent; what no mmproj holds is refused in its row."""
    chosen = ("--recipe", "onnx-x86", "--recipe", "gguf-f16")
    onnx, gguf = json.loads(vlmexport("plan", fast_vlm_root / "hf", *chosen, "--json").stdout)
    written = sum(file.bytes for file in read_manifest(fast_vlm_bundle("x86")).files)
    assert onnx["bytes"] == pytest.approx(written, rel=0.02)
    assert "fastvit" in gguf["refused"]


def test_a_plan_says_what_can_be_in_place_of_an_mmproj(fast_vlm_bundle: Bundles, fast_vlm_root: Path) -> None:
    """One reason for all types, with the flag that a plan takes, too."""
    shown = " ".join(vlmexport("plan", fast_vlm_root / "hf").stdout.split())
    assert shown.count("no mmproj holds a 'fastvit' vision encoder: llama.cpp has no projector type for it") == 1
    assert "not gguf-f16, gguf-f32," in shown
    assert "--vision onnx" in shown
    chosen = ("--type", "q4_k_m", "--recipe", "onnx-fp32", "--vision", "onnx")
    onnx, hybrid = json.loads(vlmexport("plan", fast_vlm_root / "hf", *chosen, "--json").stdout)
    assert (onnx["recipe"], hybrid["recipe"]) == ("onnx-fp32", "gguf-q4_k_m-onnx-x86")
    written = sum(file.bytes for file in read_manifest(fast_vlm_bundle("hybrid")).files)
    assert hybrid["bytes"] == pytest.approx(written, rel=0.02)


def test_compare(fast_vlm_root: Path) -> None:
    done = vlmexport("compare", *(fast_vlm_root / layout for layout in LAYOUTS), "--phone", "raspberry-pi-5")
    assert done.returncode == 0, done.stderr
    assert next(line for line in done.stdout.splitlines() if "visual tokens" in line).count("16") == 2


def test_bench(fast_vlm_bundle: Bundles) -> None:
    done = vlmexport("bench", fast_vlm_bundle("hybrid"), "--rounds", "1", "--new-tokens", "2", "--json")
    assert done.returncode == 0, done.stderr
    (facts,) = json.loads(done.stdout)
    assert facts["decode_tokens_per_second"] > 0


def test_a_new_projector_between_its_parts(fast_vlm_root: Path, tmp_path: Path) -> None:
    """Exported and checked as any model."""
    chosen = ("--from", fast_vlm_root / "apple", "--projector", "mlp2x_gelu")
    made = vlmexport("new", *chosen, "-o", tmp_path / "made", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["visual_tokens"] == 16
    done = vlmexport("onnx", tmp_path / "made", "--recipe", "onnx-fp32", "-o", tmp_path / "bundle", "-q")
    assert done.returncode == 0, done.stderr
    checked = vlmexport("check", tmp_path / "bundle", "--samples", "20", "--json")
    assert checked.returncode == 0, checked.stderr
    assert {stage["stage"] for stage in json.loads(checked.stdout)["stages"]} == set(STAGES)


@pytest.fixture(scope="module")
def recording(fast_vlm_bundle: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the float model makes of twenty questions, while a right bundle passes."""
    path = tmp_path_factory.mktemp("recording") / "float.safetensors"
    assert check(fast_vlm_bundle("fp32"), samples=questions(20), record=path).passed
    return path


def to_padding(document: dict[str, Any]) -> None:
    """As Apple's layout has it."""
    document.update(image_processor_type="VLMImageProcessor", image_size=256, size={"longest_edge": 256})
    document.update(do_center_crop=False, do_pad=True, pad_size={"width": 256, "height": 256})
    document.update(background_color=[0, 0, 0])


Edit = Callable[[Mutant], None]
FAULTS: dict[str, tuple[str, str | None, Edit]] = {
    "the other layout's pixels": (
        "pixels", None, lambda found: found.edit_json("preprocessor_config.json", to_padding),
    ),
    "BGR": (
        "features", "vision.stem.0",
        lambda found: found.edit_weight("vision_encoder", "vision.stem.0.reparam_conv.weight", lambda w: w[:, ::-1]),
    ),
    "positions left out": (
        "features", "vision.stages.3.pos_emb",
        lambda found: found.edit_weight("vision_encoder", "vision.stages.3.pos_emb.reparam_conv.weight", np.zeros_like),
    ),
    "no system sentence": (
        "logits", None,
        lambda found: found.edit_json(
            "tokenizer_config.json",
            lambda document: document.update(
                chat_template=document["chat_template"].replace("You are a helpful assistant.", "")
            ),
        ),
    ),
    "another bias of the queries": (
        "logits", "language.model.layers.0.self_attn",
        lambda found: found.edit_weight(
            "decoder_model_merged", "language.model.layers.0.self_attn.q_proj.bias", lambda bias: bias + 1.0
        ),
    ),
}  # fmt: skip
"""Fault → the stage that is red, the first layer that diverges, and what makes it."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_where_it_is(name: str, fast_vlm_bundle: Bundles, recording: Path, tmp_path: Path) -> None:
    stage, layer, edit = FAULTS[name]
    found = Mutant(fast_vlm_bundle("fp32"), tmp_path / "mutant", questions(20), recording)
    edit(found)
    result = found.check()
    assert result.broken_stage == stage
    assert {place for place, _ in failed(result)} >= {stage}
    if layer is not None:
        assert found.first()[stage].startswith(layer)


def test_the_exit_code_says_so(fast_vlm_bundle: Bundles, recording: Path, tmp_path: Path) -> None:
    found = Mutant(fast_vlm_bundle("fp32"), tmp_path / "mutant", questions(20), recording)
    FAULTS["BGR"][2](found)
    found.rehash()
    wrong = vlmexport("check", found.folder, "--samples", "20", "--json")
    assert wrong.returncode == 1
    assert json.loads(wrong.stdout)["broken_stage"] == "features"
