"""Bundles measured by real runtimes, in processes of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.command import vlmexport
from tests.onnx_bundles import Bundles
from tests.test_cli import assert_one_line_error
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.bench import BundleBench, bench
from vlmexport.bench.turns import _alone
from vlmexport.console import QUIET
from vlmexport.errors import UsageError
from vlmexport.flags import gguf_recipe
from vlmexport.pipeline import export
from vlmexport.recipe import resolve
from vlmexport.source.checkpoint import Checkpoint

NEW_TOKENS = 8


@pytest.fixture(scope="module")
def gguf(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, flags = gguf_recipe("f16")
    return export(str(tiny_folder), resolve(name, flags), tmp_path_factory.mktemp("bench") / "gguf", console=QUIET)


@pytest.fixture(scope="module")
def measured(gguf: Path, onnx_bundle: Bundles) -> list[BundleBench]:
    return bench([gguf, onnx_bundle("fp32")], new_tokens=NEW_TOKENS, rounds=2)


@pytest.mark.slow
def test_every_measure_is_there_and_possible(measured: list[BundleBench], tiny: Checkpoint) -> None:
    for one in measured:
        assert one.positions > 144
        assert 0 < one.image.low <= one.image.median <= one.image.high
        assert one.cold.low > one.first_token, "cold includes opening"
        assert one.prompt.median > one.token.median, "a prompt of 200 positions takes longer than one token"
        assert 0 < one.decoder_prompt.low <= one.decoder_prompt.high < one.prompt.high
        assert 0 < one.decoder_token.low < one.decoder_token.high < one.token.high, "the rest is ours"
        assert one.decode_rate == pytest.approx(1 / one.token.median)
        for component in one.components:
            assert 0 < component.bytes < one.bytes
            assert component.peak_bytes is not None
            assert component.peak_bytes > component.bytes
    assert measured[0].runtime.startswith("llama-cpp-python")
    assert measured[1].runtime.startswith("onnxruntime")


@pytest.mark.slow
def test_the_halves_hold_their_own_weights_alone(measured: list[BundleBench], gguf: Path) -> None:
    """The worker's own packages weigh more than a tiny model, so the file's mapping tells."""
    from vlmexport.bench.halves import decoder_alone, vision_alone

    manifest = read_manifest(gguf)
    language, mmproj = manifest.decoding.file("language"), manifest.seeing.file("mmproj")
    for half, other in ((vision_alone, language), (decoder_alone, mmproj)):
        with half(gguf, manifest) as (_, worker):
            assert other not in Path(f"/proc/{worker.pid}/maps").read_text()


@pytest.mark.slow
def test_command(gguf: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    found = vlmexport("bench", gguf, "--rounds", "1", "--new-tokens", "4", "--plot", plot, "--json")
    assert found.returncode == 0, found.stderr
    (facts,) = json.loads(found.stdout)
    assert facts["new_tokens"] == 4
    assert facts["decode_tokens_per_second"] > 0
    assert "tokens a second" in plot.read_text()
    assert "vlmexport check" in found.stderr


def test_each_measurement_has_a_process_of_its_own() -> None:
    assert len({os.getpid(), _alone(os.getpid), _alone(os.getpid)}) == 3


def test_an_error_comes_through_with_its_cure() -> None:
    with pytest.raises(UsageError) as caught:
        _alone(read_manifest, Path("nothing"))
    assert caught.value.cure.startswith("make one with")


def test_no_bundle(tmp_path: Path) -> None:
    assert_one_line_error(vlmexport("bench", tmp_path), 2, "is not a bundle", "vlmexport onnx")


@pytest.mark.slow
def test_an_answer_longer_than_the_context(gguf: Path) -> None:
    with pytest.raises(UsageError, match=r"its context is \d+: ask for fewer tokens"):
        bench([gguf], new_tokens=10_000, rounds=1)
