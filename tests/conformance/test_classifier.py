"""A design that answers with a class, through every command: what it writes, what it says, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.command import vlmexport
from tests.onnx_bundles import picture
from tests.prompts import ask
from tests.test_cli import assert_one_line_error
from vlmexport import pipeline
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.bench.measure import Request, answers, decoder_peak
from vlmexport.costs import choose_phones, estimate
from vlmexport.design import Design, create
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.model.language.bert import ANSWERS
from vlmexport.parity import check
from vlmexport.pipeline import open_whole
from vlmexport.plan import plan
from vlmexport.processing.prompt import Seen, Views
from vlmexport.recipe import resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.runtime.stages import F32

QUESTION = "Is there a cat?"
SAMPLES = 24
PRECISIONS = {"fp32": "onnx-fp32", "x86": "onnx-x86", "arm64": "onnx-arm64"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "model"
    create(Design("vit:tiny", "linear", "bert:tiny"), path)
    return path


@pytest.fixture(scope="module")
def float_bundle(model: Path) -> Path:
    return pipeline.export(str(model), resolve("onnx-fp32"), model.parent / "fp32")


def export(model: Path, name: str, float_bundle: Path) -> Path:
    if name == "fp32":
        return float_bundle
    return pipeline.export(str(model), resolve(PRECISIONS[name], {"calibration.samples": 8}), model.parent / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRECISIONS)
def test_it_is_exported_and_passes_its_check(name: str, model: Path, float_bundle: Path) -> None:
    bundle = export(model, name, float_bundle)
    result = check(bundle, samples=SAMPLES)
    assert result.passed, [gate for gate in result.gates if not gate.passed]
    assert {answer.bundle for answer in result.answers} <= set(ANSWERS)
    stages = {(stage.stage, stage.mode): stage for stage in result.stages}
    assert stages["logits", "chained"].metrics["kld"] < (1e-9 if name == "fp32" else 1e-2)
    assert f"one of {len(ANSWERS)} classes" in (bundle / "README.md").read_text()


@pytest.mark.slow
def test_the_graph_takes_no_cache_and_gives_one_row(float_bundle: Path) -> None:
    session = onnxruntime.InferenceSession(float_bundle / "onnx" / "decoder_model_merged.onnx")
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    assert shapes == {
        "inputs_embeds": ["batch_size", "sequence_length", 128], "attention_mask": ["batch_size", "sequence_length"],
        "position_ids": ["batch_size", "sequence_length"], "logits": ["batch_size", 1, len(ANSWERS)],
    }  # fmt: skip
    found = {path.name for path in float_bundle.rglob("*.*")}
    assert not found & {"genai_config.json", "generation_config.json", "embedding.onnx"}
    config = json.loads((float_bundle / "config.json").read_text())
    assert config["model_type"] == "vlmexport"
    assert tuple(config["id2label"].values()) == tuple(config["text_config"]["classes"]) == ANSWERS


@pytest.mark.slow
def test_a_runtime_answers_once_whatever_it_is_asked_for(model: Path, float_bundle: Path) -> None:
    reference, runtime = ReferenceRuntime(open_whole(str(model))), open_runtime(float_bundle)
    pixels = reference.pixels(picture(0))
    tokens = reference.tokens(reference.features(pixels))
    prompt = ask(runtime, QUESTION, len(tokens))
    assert prompt == ask(reference, QUESTION, len(tokens))
    for side in (reference, runtime):
        assert side.classes == ANSWERS
        ((token, rows),) = side.steps(prompt, [tokens], 5, ignore_eos=True)
        assert rows.shape == (1, len(ANSWERS))
        assert token.margin == pytest.approx(float(np.diff(np.sort(rows[0])[-2:])[0]))
        assert side.decode([token.id]) == ANSWERS[int(rows[0].argmax())]
        assert np.abs(side.logits(prompt, [tokens], 0)[0] - rows).max() < 1e-5
    picture(0).save(model.parent / "picture.png")
    said = [vlmexport("run", path, "--image", model.parent / "picture.png", QUESTION) for path in (model, float_bundle)]
    assert said[0].stdout == said[1].stdout == f"{runtime.decode([token.id])}\n"


@pytest.mark.slow
def test_a_class_may_have_the_number_of_the_end(model: Path, float_bundle: Path, tmp_path: Path) -> None:
    """Class 2 is an answer, though token 2 ends text."""
    from safetensors.torch import load_file, save_file

    create(Design("vit:tiny", "linear", "bert:tiny"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    state = load_file(file)
    state["language.classifier.bias"][2] += 100
    save_file(state, file)
    picture(0).save(tmp_path / "picture.png")
    assert (
        vlmexport("run", tmp_path / "model", "--image", tmp_path / "picture.png", QUESTION).stdout == f"{ANSWERS[2]}\n"
    )


@pytest.mark.slow
def test_a_recorded_check_says_the_same(float_bundle: Path, tmp_path: Path) -> None:
    first = check(float_bundle, samples=SAMPLES, record=tmp_path / "values")
    again = check(float_bundle, samples=SAMPLES, replay=tmp_path / "values")
    assert again.passed
    assert [stage.metrics for stage in again.stages] == [stage.metrics for stage in first.stages]


def nothing(count: int) -> Seen[F32]:
    return Seen(np.zeros((count, 128), np.float32), Views(((1, count),)))


@pytest.mark.slow
def test_bench_counts_no_tokens(float_bundle: Path) -> None:
    request = Request(picture(0), QUESTION, 64)
    found = answers(float_bundle, request)
    assert (len(found.prompt), found.token) == (3, [])
    assert decoder_peak(float_bundle, read_manifest(float_bundle), request, nothing(36))
    with pytest.raises(UsageError, match="512"):
        decoder_peak(float_bundle, read_manifest(float_bundle), request, nothing(500))


def test_what_it_costs_has_no_token(model: Path) -> None:
    checkpoint, recipe = open_whole(str(model)), resolve("onnx-arm64")
    costs = estimate(checkpoint, recipe, choose_phones(None))
    assert costs.operations.token == 0 < costs.operations.prompt
    assert {time.token for time in costs.times} == {None}
    assert [part.name for part in plan(checkpoint, [recipe])[0].parts][:4] == [
        "vision_encoder", "projector", "embed_tokens", "decoder_model_merged",
    ]  # fmt: skip
    assert "answers at once" in vlmexport("compare", model, "--recipe", "onnx-arm64").stdout


@pytest.mark.slow
def test_what_generates_text_is_refused(model: Path, float_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    for flags in ((), ("--vision", "onnx")):
        assert_one_line_error(
            vlmexport("gguf", model, "-o", bundle, *flags), 3, "GGUF cannot hold a bert", "vlmexport onnx"
        )
    for decoder in ("int4", "fp16"):
        refused = vlmexport("onnx", model, "-o", bundle, "--decoder", decoder)
        assert_one_line_error(refused, 3, "not known for 'bert'", "--decoder fp32 or int8")
    assert_one_line_error(vlmexport("serve", float_bundle), 3, "one of 20 classes", "vlmexport run")
    assert not bundle.exists()


@pytest.mark.parametrize("classes", ["yes", ["yes", 1], {"0": "yes"}])
def test_garbled_classes_are_one_clear_error(classes: object, model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["classes"] = classes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(model / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks or garbles classes \(a list of texts\)"):
        open_whole(str(tmp_path))
