"""The float model's values, written down and read back: a replayed check says what the recorded one said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.onnx_bundles import Bundles
from tests.prompts import around
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.calibrate import Sample
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.parity import check
from vlmexport.parity.layers.int8_weights import WRONG
from vlmexport.parity.reference.recording import Recorder, Recording
from vlmexport.parity.reference.values import ImageValues, QuestionValues
from vlmexport.parity.result import Inputs
from vlmexport.processing.image import PIXELS, ProcessedImage
from vlmexport.processing.prompt import Seen, Views
from vlmexport.runtime.stages import F32, Features

INPUTS = Inputs(
    weights={"model": "00"}, files={}, samples="11", images={"image-0": "a", "image-1": "b"},
    spec={"language": {"rms_norm_eps": 1e-5}},
)  # fmt: skip


def sample(number: int) -> Sample:
    def load() -> None:
        raise AssertionError("a replay needs no image")

    return Sample(f"{number}", f"image-{number // 2}", f"question {number}", load)  # type: ignore[arg-type]


class Made:
    """Values made from a sample's name."""

    name = "made"

    def image(self, sample: Sample) -> ImageValues:
        random = np.random.default_rng(len(sample.image_id))
        pixels, *views, tokens = (random.random((1, 4, 3 + i), np.float32) for i in range(4))
        image = ProcessedImage({PIXELS: pixels}, Views(((2, 2), (1, 3)), (1, 1)))
        return ImageValues(image, Features((views[0][0], views[1][0, :3])), tokens[0])

    def question(self, sample: Sample, seen: Sequence[Seen[F32]]) -> QuestionValues:
        logits = np.random.default_rng(int(sample.id)).random((1, 3, 7), np.float32)
        return QuestionValues(around((1, 2), (3,), 4, "a<image>b"), [4, 5, 2], [0.5, 0.25, 1.0], "said", logits)


def recorded(path: Path, count: int = 4) -> Recording:
    recorder = Recorder(Made(), path, INPUTS)
    for number in range(count):
        if number % 2 == 0:
            recorder.image(sample(number))
        recorder.question(sample(number), [])
    recorder.finish()
    return Recording(path)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    recording, made = recorded(tmp_path / "r.safetensors"), Made()
    assert recording.name == "made, recorded"
    for number in (3, 0):
        found, expected = recording.image(sample(number)), made.image(sample(number))
        np.testing.assert_array_equal(found.pixels.pixel_values, expected.pixels.pixel_values)
        assert found.pixels.views == expected.pixels.views
        for ours, theirs in zip(found.features.views, expected.features.views, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        said, right = recording.question(sample(number), []), made.question(sample(number), [])
        assert (said.prompt, said.answer, said.margins, said.text) == (
            right.prompt, right.answer, right.margins, right.text,
        )  # fmt: skip
        np.testing.assert_array_equal(said.logits, right.logits)
    assert [path.name for path in tmp_path.iterdir()] == ["r.safetensors"]
    assert len(load_file(tmp_path / "r.safetensors")) == 2 * 4 + 4


def test_of_another_comparison(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "r.safetensors")
    recording.refuse_other(INPUTS)
    with pytest.raises(CheckpointError, match="another model"):
        recording.refuse_other(INPUTS.model_copy(update={"weights": {}}))
    with pytest.raises(CheckpointError, match=r"rms_norm_eps: 1e-05 in the recording, 0\.001 in the bundle"):
        recording.refuse_other(INPUTS.model_copy(update={"spec": {"language": {"rms_norm_eps": 1e-3}}}))
    with pytest.raises(UsageError, match="other samples \\(4 samples\\)"):
        recording.refuse_other(INPUTS.model_copy(update={"samples": "12"}))
    with pytest.raises(UsageError, match=r"other pictures under the same names: image-1 \(4 samples\)"):
        recording.refuse_other(INPUTS.model_copy(update={"images": {"image-0": "a", "image-1": "c"}}))


def test_a_recording_of_an_earlier_version(tmp_path: Path) -> None:
    about = {"schema": 1, "reference": "made", "weights": {}, "samples": "11", "images": [], "questions": []}
    save_file({"a": np.zeros(1)}, tmp_path / "old.safetensors", {"vlmexport": json.dumps(about)})
    with pytest.raises(UsageError, match=r"is a recording of schema 1, not 5: record it again, with --record"):
        Recording(tmp_path / "old.safetensors")


def test_no_recording(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Recording(tmp_path / "no")
    save_file({"a": np.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("no safetensors")
    for name in ("other.safetensors", "text"):
        with pytest.raises(UsageError, match="is no recording, or damaged"):
            Recording(tmp_path / name)


def test_an_interrupted_recording_leaves_nothing(tmp_path: Path) -> None:
    recorder = Recorder(Made(), tmp_path / "r.safetensors", INPUTS)
    recorder.image(sample(0))
    recorder.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_replayed_check_says_what_the_recorded_one_said(onnx_bundle: Bundles, tmp_path: Path) -> None:
    path, bundle = tmp_path / "r.safetensors", onnx_bundle("int8")
    live = check(bundle, samples=20, record=path)
    manifest = read_manifest(bundle)
    gone = manifest.source.model_copy(update={"path": str(tmp_path / "gone")})
    write_manifest(bundle, manifest.model_copy(update={"source": gone}))
    try:
        with pytest.raises(CheckpointError, match="does not exist"):
            check(bundle, samples=20)
        replayed = check(bundle, samples=20, replay=path)
        with pytest.raises(UsageError, match="other samples \\(20 samples\\)"):
            check(bundle, samples=21, replay=path)
    finally:
        write_manifest(bundle, manifest)
    assert replayed.reference.endswith("recorded)")
    without_weights = [gate for gate in live.gates if gate.metric != WRONG]  # which a recording does not hold
    assert (replayed.passed, replayed.gates, replayed.answers) == (live.passed, without_weights, live.answers)
    assert (live.weights is None, replayed.weights is None) == (False, True)
    for ours, theirs in zip(replayed.stages, live.stages, strict=True):
        assert ours.metrics == theirs.metrics


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"reference": "demo"}, {"dask": "local:2"}, {"record": Path("x")}])
def test_replay_takes_the_place_of_the_float_model(onnx_bundle: Bundles, options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="--replay takes the place"):
        check(onnx_bundle("int8"), samples=20, replay=Path("r"), **options)  # type: ignore[arg-type]
