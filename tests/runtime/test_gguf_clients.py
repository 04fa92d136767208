"""The demo's GGUF bundle in clients that we did not write: llama-cpp-python, and xllamacpp's server over HTTP.

Both compute image features with the libmtmd inside of them, which shifts the position embeddings of a CLIP tower by one
(llama.cpp #25814; should a newer one be right, its answers are those of the repaired run). The demo bears that shift
well enough to answer; a checkpoint of full size may not. So what is asserted: known answers that the float model gives
too, and for every sample the answer of our own run, with libmtmd as it is or repaired.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.gguf_bundles import export
from tests.prompts import ask
from tests.runtime.gguf_clients import LlamaCppPython, Server, serve, user
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.calibrate.samples import Sample, heldout_samples
from vlmexport.demo import model_path
from vlmexport.runtime.joined import join
from vlmexport.runtime.llamacpp.halves import LlamaCppHalves
from vlmexport.source.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow

COUNT = 8
KNOWN = ("scene-3000000#0", "scene-3000001#0", "scene-3000002#0", "scene-3000004#0")
"""Samples of which the float model, the stock and the repaired run all give the expected answer."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clients") / "demo"
    export(open_checkpoint(model_path()), folder, type="q8_0")
    return folder


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return heldout_samples(COUNT)


@pytest.fixture(scope="module")
def expected(bundle: Path, samples: list[Sample]) -> list[set[str]]:
    """Our own answers with libmtmd as it is, and repaired."""
    found: list[set[str]] = [set() for _ in samples]
    for repair in (False, True):
        with closing(join(LlamaCppHalves(bundle, read_manifest(bundle), repair=repair))) as runtime:
            for sample, answers in zip(samples, found, strict=True):
                tokens = runtime.tokens(runtime.features(runtime.pixels(sample.image())))
                ids = [token.id for token in runtime.generate(ask(runtime, sample.question), [tokens], 64)]
                answers.add(runtime.decode(ids))
    return found


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    with serve(bundle) as running:
        yield running


def assert_right(answers: list[str], samples: list[Sample], expected: list[set[str]]) -> None:
    """A client's answers keep the space that the first word begins with."""
    found = {sample.id: answer.strip() for sample, answer in zip(samples, answers, strict=True)}
    assert {name: found[name] for name in KNOWN} == {s.id: s.answer for s in samples if s.id in KNOWN}
    assert all(answer in own for answer, own in zip(found.values(), expected, strict=True)), (found, expected)


def test_llama_cpp_python(bundle: Path, samples: list[Sample], expected: list[set[str]]) -> None:
    with closing(LlamaCppPython(bundle)) as client:
        assert_right([client.ask(user(s.image(), s.question)) for s in samples], samples, expected)
        assert_right([client.ask(user(s.question, s.image())) for s in samples], samples, expected)


def test_server(server: Server, samples: list[Sample], expected: list[set[str]]) -> None:
    """Nothing is said of sampling: the file says greedy."""
    assert server.get("/props")["default_generation_settings"]["params"]["temperature"] == 0
    assert server.get("/props")["modalities"]["vision"] is True
    assert_right([server.ask(user(s.image(), s.question)) for s in samples], samples, expected)
    assert_right([server.ask(user(s.question, s.image())) for s in samples], samples, expected)


def test_the_server_sees_the_image(server: Server, samples: list[Sample]) -> None:
    """One question, other images, other answers."""
    answers = {server.ask(user(sample.image(), "What color is the background?")) for sample in samples}
    assert len(answers) > 2


def test_a_conversation(server: Server, samples: list[Sample]) -> None:
    """An answer given back as it came, with its space, is the answer that the model was trained to give."""
    first = user(samples[0].image(), samples[0].question)
    answer = server.ask(first)
    assert answer == f" {samples[0].answer}"
    messages = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "What is this?"}]
    marker = server.get("/props")["media_marker"]
    prompt = server.post("/apply-template", messages=messages)["prompt"]
    tail = f"{marker}\n{samples[0].question} ASSISTANT: {samples[0].answer}</s>USER: What is this? ASSISTANT:"
    assert prompt.endswith(tail)
    assert server.ask(messages)
