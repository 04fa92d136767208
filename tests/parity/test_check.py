"""The whole check on tiny models: it passes what is right. What is wrong: tests/mutations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.checkpoints import random_state, tiny_spec, write_checkpoint
from vlmexport.artifact.bundle.contents import source_of
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.calibrate import Sample
from vlmexport.errors import CheckpointError, NotEnoughData, ParityFailed, UsageError
from vlmexport.parity import ParityResult, check
from vlmexport.pipeline import export
from vlmexport.recipe import resolve
from vlmexport.source.checkpoint import open_checkpoint

RECIPES = {"onnx": "onnx-fp32", "gguf": "gguf-f32"}


def samples(count: int = 20) -> list[Sample]:
    """Questions about five random pictures."""
    found = []
    for i in range(count):
        pixels = np.random.default_rng(i % 5).integers(0, 255, (7, 7, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((336, 336), Image.Resampling.BICUBIC)
        found.append(Sample(f"{i}", f"image-{i % 5}", f"what is {i}?", lambda image=image: image, answer="a chat"))
    return found


@pytest.fixture(autouse=True, scope="module")
def _little_of_stock() -> Iterator[None]:
    """What llama.cpp makes of a bundle without our repairs is for test_stock.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("vlmexport.parity.check"), "STOCK_SAMPLES", 1)
        yield


@pytest.fixture(scope="module", params=sorted(RECIPES))
def bundle(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float bundle of the tiny model."""
    folder = tmp_path_factory.mktemp("bundles") / request.param
    return export(str(tiny_folder), resolve(RECIPES[request.param], environ={}), folder)


@pytest.fixture(scope="module")
def result(bundle: Path) -> ParityResult:
    """Of the bundle as it is."""
    return check(bundle, samples=samples(), memory=True)


@pytest.mark.slow
def test_a_right_bundle_passes(bundle: Path, result: ParityResult) -> None:
    assert result.passed, [gate for gate in result.gates if not gate.passed]
    assert {(stage.stage, stage.mode) for stage in result.stages} == {
        ("pixels", "chained"),
        *((stage, mode) for stage in ("features", "tokens", "logits", "answer") for mode in ("local", "chained")),
    }
    assert result.images == 5
    written = json.loads((bundle / "parity.json").read_text())
    assert written["passed"] is True
    manifest = read_manifest(bundle)
    assert manifest.parity is not None
    assert [half.name for half in result.components] == ["vision", "decoder"]
    for half in result.components:
        assert half.bytes < (half.peak_bytes or 0)
    assert "Verdict: passed" in (bundle / "README.md").read_text()


@pytest.mark.slow
def test_another_projector_is_red_at_tokens(bundle: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """A bundle that says it comes from a model which has another projector."""
    copy, other = shutil.copytree(bundle, tmp_path / "copy"), shutil.copytree(tiny_folder, tmp_path / "other")
    state = load_file(other / "model.safetensors")
    state |= {name: value for name, value in random_state(tiny_spec("ldpnetv2"), 1).items() if "mm_projector" in name}
    save_file(state, other / "model.safetensors")
    source = source_of(open_checkpoint(other))
    write_manifest(copy, read_manifest(copy).model_copy(update={"source": source}))
    result = check(copy, samples=samples())
    assert not result.passed
    assert result.broken_stage == "tokens"
    assert all(gate.passed for gate in result.gates if gate.stage == "features")


@pytest.mark.slow
def test_a_damaged_weight_file_is_red_before_anything_runs(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    path = max((p for p in copy.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ParityFailed, match=path.name) as caught:
        check(copy, samples=samples())
    assert caught.value.exit_code == 1


@pytest.mark.slow
def test_another_model_is_an_error_not_a_bad_score(bundle: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", tiny_spec("ldpnetv2"), seed=3)
    with pytest.raises(CheckpointError, match="not the model that this bundle was made from"):
        check(bundle, reference=str(other), samples=samples())


@pytest.mark.slow
def test_a_configuration_that_changed_is_named(bundle: Path, tmp_path: Path) -> None:
    where = Path(read_manifest(bundle).source.path)
    other = Path(shutil.copytree(where, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text()) | {"rms_norm_eps": 1e-3, "mm_vision_select_layer": -1}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        check(bundle, reference=str(other), samples=samples())
    assert "language.rms_norm_eps: 1e-05 in the bundle, 0.001 in the checkpoint" in caught.value.what
    assert "vision.select_layer: -2 in the bundle, -1 in the checkpoint" in caught.value.what
    assert caught.value.exit_code == 2


@pytest.mark.slow
def test_a_checkpoint_that_is_gone(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = read_manifest(copy)
    source = manifest.source.model_copy(update={"path": str(tmp_path / "moved")})
    write_manifest(copy, manifest.model_copy(update={"source": source}))
    with pytest.raises(CheckpointError, match=r"is not where it was: .*moved does not exist") as caught:
        check(copy, samples=samples())
    assert caught.value.cure == "pass it with --reference, or a recording of it with --replay"


@pytest.mark.slow
def test_a_picture_that_changed_is_named(bundle: Path, tmp_path: Path) -> None:
    """The same name, another content: a baseline and a recording are of the old one."""
    copy, data = Path(shutil.copytree(bundle, tmp_path / "copy")), tmp_path / "data"
    data.mkdir()
    for number in range(20):
        noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(data / f"{number}.png")
    check(copy, samples=20, data=data, record=tmp_path / "recording")
    Image.new("RGB", (8, 8), "red").save(data / "7.png")
    with pytest.raises(UsageError, match=r"was measured on other pictures under the same names: 7\.png \("):
        check(copy, samples=20, data=data, baseline=copy / "parity.json")
    with pytest.raises(UsageError, match=r"was recorded on other pictures under the same names: 7\.png \("):
        check(copy, samples=20, data=data, replay=tmp_path / "recording")


@pytest.mark.slow
def test_too_few_samples_give_no_verdict(bundle: Path) -> None:
    with pytest.raises(NotEnoughData, match="too few") as caught:
        check(bundle, samples=samples(19))
    assert caught.value.exit_code == 5


@pytest.mark.slow
def test_a_baseline_is_of_the_same_comparison(bundle: Path, result: ParityResult, tmp_path: Path) -> None:
    path = Path(shutil.copy(bundle / "parity.json", tmp_path / "baseline.json"))
    again = check(bundle, samples=samples(), baseline=path)
    assert again.passed
    assert again.baseline is not None
    assert {(change.stage, change.metric) for change in again.baseline.changes} >= {
        ("tokens", "nmse"),
        ("answer", "agreement"),
    }
    better = result.model_dump(mode="json")
    for stage in better["stages"]:
        if stage["stage"] == "tokens":
            stage["metrics"] |= {"agreement": 1.0}  # which tokens no longer have
    path.write_text(json.dumps(better))
    worse = check(bundle, samples=samples(), baseline=path)
    assert (worse.passed, worse.broken_stage) == (False, "tokens")
    assert all(gate.passed for gate in worse.gates)
    with pytest.raises(UsageError, match="other samples \\(20 samples\\)"):
        check(bundle, samples=samples(21), baseline=path)


def write_data(folder: Path, count: int) -> Path:
    """The same pictures as files, with questions."""
    for i in range(5):
        samples()[i].image().save(folder / f"{i}.png")
    asked = [
        {"image": f"{i % 5}.png", "question": f"what is {i}?", "answer": "yes" if i % 2 else "a chat"}
        for i in range(count)
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return folder


@pytest.mark.slow
def test_data_of_ones_own(bundle: Path, tmp_path: Path) -> None:
    write_data(tmp_path, 22)
    result = check(bundle, data=tmp_path)
    assert result.passed, [gate for gate in result.gates if not gate.passed]
    assert (result.samples, result.images, result.data) == (22, 5, tmp_path.name)
    assert {"accuracy", "reference_f1", "f1", "task_drop_low"} <= result.stages[-1].metrics.keys()
    assert {answer.task for answer in result.answers} == {"exact", "yes_no"}
    with pytest.raises(NotEnoughData, match="19 samples are too few"):
        check(bundle, data=tmp_path, samples=19)
