"""An ONNX bundle in another process's onnxruntime: the protocol here, and arm64's own kernels under QEMU."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.manifests import manifest
from tests.onnx_bundles import Bundles, picture
from tests.prompts import ask
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.errors import MissingDependency, UsageError, VlmExportError
from vlmexport.runtime.int8_kernels import Int8Kernels
from vlmexport.runtime.joined import Joined, join
from vlmexport.runtime.ort.arm64.root import CORES, cores
from vlmexport.runtime.ort.arm64.sessions import Arm64Sessions, open_cores
from vlmexport.runtime.ort.halves import OrtHalves


@pytest.fixture
def as_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker runs in this very Python, as it does on an arm64 machine."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")


def opened(bundle: Path, core: str) -> Joined:
    return join(OrtHalves(bundle, read_manifest(bundle), sessions=Arm64Sessions(core)))


def test_where_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("VLMEXPORT_CACHE", str(tmp_path))
    with pytest.raises(MissingDependency, match="for arm64 is not set up on this x86_64 machine: run `make arm64`"):
        cores()


@pytest.mark.parametrize("kind", ["gguf", "hybrid"])
def test_llama_cpp_is_not_emulated(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"is a {kind} bundle, and arm64 is checked with ONNX bundles alone"):
        open_cores(tmp_path, manifest(kind))


@pytest.mark.slow
@pytest.mark.usefixtures("as_native")
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_in_another_process_all_is_the_same(name: str, onnx_bundle: Bundles) -> None:
    bundle = onnx_bundle(name)
    found = open_cores(bundle, read_manifest(bundle))
    assert list(found) == ["native"]
    with closing(found["native"]) as there, closing(join(OrtHalves(bundle, read_manifest(bundle)))) as here:
        assert there.name.startswith(f"{here.name} on arm64 native")
        assert "QEMU" not in there.name
        pixels = here.pixels(picture(4))
        features, prompt = here.features(pixels), ask(here, "what is polite?")
        tokens = here.tokens(features)
        np.testing.assert_array_equal(there.features(pixels).rows, features.rows)
        alone = replace(features, tokens=None)
        np.testing.assert_array_equal(there.tokens(alone), here.tokens(alone))
        np.testing.assert_array_equal(there.logits(prompt, [tokens], 0), here.logits(prompt, [tokens], 0))
        assert list(there.generate(prompt, [tokens], 6)) == list(here.generate(prompt, [tokens], 6))


@pytest.mark.slow
@pytest.mark.usefixtures("as_native")
def test_errors_of_the_process_are_ours(onnx_bundle: Bundles, tmp_path: Path) -> None:
    with closing(opened(onnx_bundle("fp32"), "native")) as runtime:
        (tmp_path / "damaged.onnx").write_bytes(b"no graph")
        with pytest.raises(VlmExportError, match=r"damaged\.onnx cannot be opened"):
            runtime.decoding._graphs.sessions.open("damaged", tmp_path / "damaged.onnx", 1, None)
        prompt, tokens = ask(runtime, "a?"), np.zeros((144, 256), np.float32)
        first = runtime.generate(prompt, [tokens], 4)
        next(first)
        next(runtime.generate(prompt, [tokens], 4))
        with pytest.raises(VlmExportError, match="the cache of this answer is gone"):
            next(first)
        with pytest.raises(VlmExportError, match="onnxruntime on native died while running projector"):
            runtime.seeing._graphs.run("projector", {"no such input": tokens})
        with pytest.raises(VlmExportError, match="was closed before running projector"):
            runtime.seeing._graphs.run("projector", {"features": tokens})


@pytest.fixture(scope="module", params=CORES)
def core(request: pytest.FixtureRequest, emulated: None, onnx_bundle: Bundles) -> Iterator[Joined]:
    """The tiny bundle with an int4 decoder, whose cache stays in one place, on an emulated core."""
    with closing(opened(onnx_bundle("int4"), request.param)) as runtime:
        yield runtime


@pytest.mark.slow
def test_cores_have_the_instructions_that_they_stand_for(core: Joined) -> None:
    wanted = {"cortex-a76": "(dot product)", "max": "(dot product, i8mm)"}
    (name,) = (name for name in wanted if name in core.name)
    assert wanted[name] in core.name
    assert "under QEMU 10." in core.name
    assert core.decoding._graphs.sessions.machine == "aarch64" != platform.machine()
    best = {"cortex-a76": "dot product", "max": "i8mm"}
    assert core.kernels() == Int8Kernels(best[name], saturates=False)


@pytest.mark.slow
def test_an_int4_decoder_is_near(core: Joined, onnx_bundle: Bundles) -> None:
    """Kernels of accuracy level 4 round activations, each in its own way. On one core, steps are as in one pass."""
    prompt = ask(core, "what is polite?")
    tokens = np.random.default_rng(0).normal(0, 0.02, (144, 256)).astype(np.float32)
    with closing(join(OrtHalves(onnx_bundle("int4"), read_manifest(onnx_bundle("int4"))))) as here:
        expected = here.logits(prompt, [tokens], 0)
    off = np.linalg.norm(core.logits(prompt, [tokens], 0) - expected) / np.linalg.norm(expected)
    assert 0 < off < 0.1
    ids = [token.id for token in core.generate(prompt, [tokens], 4)]
    whole = prompt.answered(ids[:-1])
    assert core.logits(whole, [tokens], 0)[0, -len(ids) :].argmax(-1).tolist() == ids
