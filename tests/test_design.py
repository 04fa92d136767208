"""``vlmexport new``: checkpoints of any combination, the same bytes for the same seed, and clear refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.command import vlmexport
from tests.onnx_bundles import picture
from tests.test_cli import assert_one_line_error
from vlmexport import design
from vlmexport.checkpoint import open_checkpoint
from vlmexport.design import Design, create, specify
from vlmexport.errors import CheckpointError, Unsupported, UsageError
from vlmexport.pipeline import export, open_whole
from vlmexport.recipe import resolve
from vlmexport.runtime.opening import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.runtime.stages import F32

TINY = Design("clip:tiny", "ldpnetv2", "llama:tiny", image_size=168)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A design's checkpoint."""
    folder = tmp_path_factory.mktemp("design") / "tiny"
    create(TINY, folder)
    return folder


def test_a_design_opens_as_it_was_specified(folder: Path) -> None:
    checkpoint = open_whole(str(folder))
    assert checkpoint.spec == replace(specify(TINY), name="tiny")
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer.encode("what is it?")) == "what is it?"
    assert json.loads((folder / design.MARK).read_text())["vision"] == "clip:tiny"


def test_the_seed_decides_the_bytes(folder: Path, tmp_path: Path) -> None:
    create(TINY, tmp_path / "again")
    create(replace(TINY, seed=1), tmp_path / "other")
    first, again, other = (path / "model.safetensors" for path in (folder, tmp_path / "again", tmp_path / "other"))
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_large_designs_are_cut_in_shards(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(design, "_SHARD", 1_000_000)
    create(TINY, tmp_path / "shards")
    parts = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(parts) > 3
    state = {name: value for part in parts for name, value in load_file(part).items()}
    whole = load_file(folder / "model.safetensors")
    assert state.keys() == whole.keys()
    assert all(state[name].equal(value) for name, value in whole.items())
    assert open_checkpoint(tmp_path / "shards").spec.vision == specify(TINY).vision


def test_force_replaces_a_design_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already: pass --force"):
        create(TINY, folder)
    before = (folder / "model.safetensors").read_bytes()
    create(TINY, folder, force=True)
    assert (folder / "model.safetensors").read_bytes() == before
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"no design\.json in it\) and not empty"):
        create(TINY, tmp_path, force=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": "nope"}, r"unknown vision 'nope': known: clip"),
        ({"vision": "clip:huge"}, r"clip has no variant 'huge': known: clip:l14-336"),
        ({"image_size": 100}, r"clip .*14 pixels, 100 do not divide: use a multiple of 14, such as 98"),
        ({"projector": "nope"}, r"unknown projector 'nope'"),
        ({"image_size": 98}, r"ldpnetv2 .* 49 patches do not divide: use .*12x12"),
        ({"projector": "pool", "image_size": 98}, r"7x7\) do not divide"),
        ({"language": "llama:9b"}, r"llama has no variant '9b': known: llama:tiny"),
        (
            {"vision": "clip:l14-336", "projector": "linear", "image_size": None, "language": "bert:base"},
            r"576 visual tokens leave no room for a question in the 512 positions of a bert: choose a projector",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        specify(replace(TINY, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("vision_config", "hue"), 3, "vision_config.hue is unknown"),
        (("vision_config", "image_size"), "big", "garbled .'big' is no int"),
        (("vision_config", "image_mean"), [0.5], "garbled"),
        (("vision_config", "num_layers"), 1, "sizes that cannot be"),
        (("projector",), None, "lacks vision_config, projector or text_config"),
    ],
)
def test_a_garbled_config_is_one_clear_error(
    folder: Path, tmp_path: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if path[-1] == "num_layers":
        inner["select_layer"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.slow
def test_the_command_shows_what_it_made(tmp_path: Path) -> None:
    chosen = ("--vision", "clip:tiny", "--image-size", "168", "--projector", "pool_max")
    made = vlmexport("new", *chosen, "-o", tmp_path / "made", "--json")
    facts = json.loads(made.stdout)
    assert facts["visual_tokens"] == 36
    assert facts["components"]["projector"]["kind"] == "pool_max"
    assert "hybrid" in facts["formats"]["gguf"]
    assert_one_line_error(vlmexport("new", "--vision", "clip:vast", "-o", tmp_path / "none"), 3, "clip:tiny")
    assert not (tmp_path / "none").exists()


TIMM = Design("timm:test_efficientnet", "qformer16x64", "llama:tiny", image_size=128)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "recipe", "flags", "least"),
    [
        (TIMM, "onnx-fp32", {}, 0.99999),
        (replace(TINY, projector="mlp2x_gelu96"), "gguf-q8_0", {"gguf.mmproj_type": "f32"}, 0.99999),
        (replace(TIMM, projector="pool"), "gguf-q8_0", {"gguf.vision": "onnx", "calibration.samples": 4}, 0.95),
    ],
    ids=["onnx", "mmproj", "int8-hybrid"],
)
def test_a_design_goes_through_export_and_runtime(
    chosen: Design, recipe: str, flags: dict[str, object], least: float, tmp_path: Path
) -> None:
    if chosen.vision.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    create(chosen, tmp_path / "model")
    bundle = export(str(tmp_path / "model"), resolve(recipe, flags | {"gguf.imatrix": "none"}), tmp_path / "bundle")
    reference, runtime = ReferenceRuntime(open_whole(str(tmp_path / "model"))), open_runtime(bundle)
    image = picture(0, (chosen.image_size,) * 2)  # of the model's size: libmtmd resizes otherwise than PIL
    pixels = runtime.pixels(image).copy()  # libmtmd's own memory, read-only
    assert np.abs(pixels - reference.pixels(image)).max() < 1e-5
    tokens, expected = runtime.tokens(runtime.features(pixels)), reference.tokens(reference.features(pixels))
    assert cosine(tokens, expected) > least
    prompt = runtime.prompt("what is it?")
    assert cosine(runtime.logits(prompt, tokens), reference.logits(prompt, expected)) > least - 0.01
    runtime.close()


def cosine(a: F32, b: F32) -> float:
    """Of each row, the worst."""
    assert a.shape == b.shape
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())
