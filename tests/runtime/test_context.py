"""Prompts and answers against the model's context: the float model and every runtime go by one rule."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.command import vlmexport
from tests.gguf_bundles import export
from tests.onnx_bundles import Bundles, picture
from tests.prompts import around, tokenized
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.bench.measure import Request, decoder_peak
from vlmexport.calibrate import Sample, collect
from vlmexport.calibrate.sensitivity import sequence
from vlmexport.errors import UsageError
from vlmexport.model import load
from vlmexport.parity.reference.values import Live
from vlmexport.processing.prompt import Prompt, Seen, Views
from vlmexport.runtime.llamacpp.halves import LlamaCppHalves
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.runtime.stages import Runtime
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

Q_PROJ = "language.model.layers.0.self_attn.q_proj"
VISUAL, CONTEXT = 144, 2048
SEEN = Seen(np.zeros((VISUAL, 256), np.float32), Views(((1, VISUAL),)))
TOKENS = [SEEN.tokens]
Open = Callable[[str], Runtime]


def prompt(length: int) -> Prompt:
    """Of so many tokens, those of the image included."""
    return around((5,) * (length - VISUAL - 1), (7,))


@pytest.fixture(scope="module")
def gguf(short: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context") / "gguf"
    export(short, folder, type="f16")
    return folder


@pytest.fixture(scope="module")
def opened(short: Checkpoint, gguf: Path, onnx_bundle: Bundles) -> Open:
    def runtime(name: str) -> Runtime:
        if name == "float":
            return ReferenceRuntime(short)
        return open_runtime(gguf if name == "gguf" else onnx_bundle(name))

    return runtime


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float", "fp32", "int4", "gguf"])
def test_one_rule_everywhere(name: str, opened: Open) -> None:
    """A traced decoder, one with fused attention, llama.cpp and PyTorch."""
    with closing(opened(name)) as runtime:
        assert runtime.context == CONTEXT
        for length, answer in ((CONTEXT - 2, 3), (CONTEXT, 1)):
            assert len(list(runtime.generate(prompt(length), TOKENS, 9, ignore_eos=True))) == answer
        line = (
            rf"the prompt is {CONTEXT + 1} tokens long \({CONTEXT + 1 - VISUAL} of text, {VISUAL} of the image\), "
            f"the model's context is {CONTEXT}: ask a shorter question"
        )
        with pytest.raises(UsageError, match=line):
            runtime.logits(prompt(CONTEXT + 1), TOKENS, 1)
        with pytest.raises(UsageError, match=line):
            next(iter(runtime.generate(prompt(CONTEXT + 1), TOKENS, 9)))


@pytest.mark.slow
def test_one_line_and_one_exit_code(short: Checkpoint, gguf: Path, onnx_bundle: Bundles, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "image.png")
    question = "what is it? " * 500
    done = [vlmexport("run", model, question, "--image", tmp_path / "image.png")
            for model in (short.path, onnx_bundle("fp32"), gguf)]  # fmt: skip
    assert [one.returncode for one in done] == [2, 2, 2]
    assert len({one.stderr for one in done}) == 1
    assert f"{VISUAL} of the image), the model's context is {CONTEXT}" in done[0].stderr
    assert done[0].stdout == ""


@pytest.mark.slow
def test_a_bench_is_refused_alike(gguf: Path) -> None:
    request = Request(picture(0), "what is it? " * 500, 2)
    with pytest.raises(UsageError, match=rf"gguf: the prompt is \d+ tokens long .* context is {CONTEXT}"):
        decoder_peak(gguf, read_manifest(gguf), request, SEEN)


@pytest.mark.slow
def test_llama_cpps_context_grows_with_the_prompt(tmp_path: Path) -> None:
    """Beyond the 4,096 tokens that it once had, up to what the model has; a short prompt afterwards is as before."""
    spec = tiny_spec("ldpnetv2", num_layers=1, max_positions=8192)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "long", spec))
    export(checkpoint, tmp_path / "gguf", type="f32")
    reference = ReferenceRuntime(checkpoint)
    with closing(LlamaCppHalves(tmp_path / "gguf", read_manifest(tmp_path / "gguf")).decoding()) as decoder:
        for length in (300, 4500, 300):
            got, want = (side.logits(prompt(length), TOKENS, 2) for side in (decoder, reference))
            np.testing.assert_allclose(got, want, atol=1e-3)
        assert [t.id for t in decoder.generate(prompt(4500), TOKENS, 4)] == [
            t.id for t in reference.generate(prompt(4500), TOKENS, 4)
        ]


@pytest.fixture
def narrow(short: Checkpoint) -> Checkpoint:
    """Its context ends three positions after the prompt."""
    room = len(_prompt(short).ids) + 3
    return replace(short, spec=replace(short.spec, language=replace(short.spec.language, max_positions=room)))


def _prompt(checkpoint: Checkpoint) -> Prompt:
    return tokenized(checkpoint.tokenizer, checkpoint.spec.prompt, "what?")


def asked(question: str, answer: str | None) -> Sample:
    return Sample("seven", "seven", question, lambda: picture(0), answer=answer)


@pytest.mark.parametrize("answer", ["a long answer that goes on", None])
def test_calibration_stops_at_the_end(answer: str | None, narrow: Checkpoint) -> None:
    vlm, sample = load(narrow), asked("what?", answer)
    layer = collect(vlm, narrow.prompts, [sample]).layers[Q_PROJ]
    assert layer.count_image + layer.count_text <= narrow.spec.language.max_positions
    assert len(sequence(vlm, narrow.prompts, sample).inputs) <= narrow.spec.language.max_positions
    if answer is not None:
        assert layer.count_image + layer.count_text == narrow.spec.language.max_positions


def test_a_sample_that_is_too_long_is_named(narrow: Checkpoint) -> None:
    vlm, sample = load(narrow), asked("what is polite? " * 4, None)
    line = r"the prompt of sample seven is \d+ tokens long"
    with pytest.raises(UsageError, match=line):
        collect(vlm, narrow.prompts, [sample])
    with pytest.raises(UsageError, match=line):
        sequence(vlm, narrow.prompts, sample)
    with pytest.raises(UsageError, match=line):
        Live(ReferenceRuntime(narrow)).question(sample, [SEEN])
