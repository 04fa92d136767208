"""The probe of the installed libmtmd: right about a real library, its reference right, its answer kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vlmexport.artifact.gguf.mmproj import tower_name
from vlmexport.cache import cache_folder
from vlmexport.errors import MissingDependency
from vlmexport.model import plugins
from vlmexport.model.vlm import VLM
from vlmexport.quantize.ggml import library_path
from vlmexport.report import library
from vlmexport.runtime.llamacpp.probe import probe as llamacpp_probe
from vlmexport.runtime.llamacpp.probe import tiny_model
from vlmexport.runtime.llamacpp.probe.probe import Probe, probe

STOCK = Probe("llama-cpp-python 0.3.36", "last", 0.36, 0.9999997)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Each test asks anew, but for the file."""
    llamacpp_probe._probe.cache_clear()
    yield
    llamacpp_probe._probe.cache_clear()


def cached() -> Path:
    return cache_folder() / f"libmtmd-{llamacpp_probe._key()}.json"


def test_the_reference_is_what_torch_computes() -> None:
    """Else the probe would blame the library."""
    values, spec = tiny_model.weights(), tiny_model.SPEC
    names = plugins.projector(spec.projector).gguf(spec.projector).tensors
    vlm = VLM(spec).to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            component, rest = name.split(".", 1)
            target = tower_name(rest, spec.vision) if component == "vision" else names.get(rest)
            parameter.copy_(torch.from_numpy(values[target].reshape(parameter.shape)) if target else torch.zeros(()))
        fresh = VLM(spec)
        for name, buffer in vlm.named_buffers():
            buffer.copy_(fresh.get_buffer(name))
        pixels = tiny_model.pixels()
        expected = vlm.tokens(vlm.features(torch.from_numpy(pixels))).numpy()
    np.testing.assert_allclose(tiny_model.tokens(pixels), expected, atol=1e-5)


def test_the_installed_library() -> None:
    """Class token first or last, right or wrong: whatever it is, it is right once repaired."""
    found = llamacpp_probe._ask()
    assert found.class_token in ("first", "last")
    assert found.repairable
    assert found.repaired > 0.999999
    assert found.right or found.stock < 0.9
    assert found.right == (found.class_token == "first")
    assert found.library.startswith("llama-cpp-python 0.")


def test_it_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = probe()
    assert json.loads(cached().read_text()) == asdict(first)
    llamacpp_probe._probe.cache_clear()
    monkeypatch.setattr(llamacpp_probe, "_ask", lambda: pytest.fail("asked again"))
    assert probe() == first


@pytest.mark.parametrize("content", ["", "[1]", '{"library": "x"}'])
def test_a_damaged_answer_is_asked_for_again(content: str) -> None:
    path = cached()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert probe().repairable
    assert json.loads(path.read_text())["class_token"] == probe().class_token


def test_another_library_is_another_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = llamacpp_probe._key()
    for name in ("mtmd", "ggml-base"):
        shutil.copy2(library_path(name), tmp_path)
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    copied = llamacpp_probe._key()
    os.utime(library_path("mtmd"), (0, 0))
    assert len({before, copied, llamacpp_probe._key()}) == 3


def test_without_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match="no library 'mtmd'"):
        probe()
    assert "no library 'mtmd'" in library.facts()["text"]


def test_what_is_said() -> None:
    assert "computed wrong (cosine 0.360 on the probe, 1.000000 repaired; llama.cpp #25814)" in STOCK.text()
    assert "repaired in process" in STOCK.note(repair=True)
    assert "left as it is" in STOCK.note(repair=False)
    right = replace(STOCK, class_token="first", stock=1.0)
    assert right.note(repair=True) == right.text()
    assert "computed right" in right.text()
    helpless = replace(STOCK, repaired=0.5).note(repair=True)
    assert "the repair does not help" in helpless
    assert "left as it is" in helpless
