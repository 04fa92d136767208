"""``vlmexport new``: checkpoints of any combination, the same bytes for the same seed, and clear refusals."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints import (
    canonical_state,
    config_of,
    hf_config,
    hf_new,
    original,
    published,
    tiny_spec,
    write_checkpoint,
)
from tests.command import vlmexport
from tests.onnx_bundles import picture
from tests.prompts import ask
from tests.test_cli import assert_one_line_error
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.calibrate import calibration_samples
from vlmexport.checkpoint.spec import VisionSpec
from vlmexport.design import MARK, Design, create, specify, write
from vlmexport.errors import CheckpointError, Unsupported, UsageError
from vlmexport.model import plugins
from vlmexport.pipeline import export, open_whole
from vlmexport.recipe import resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.runtime.stages import F32
from vlmexport.source.checkpoint import open_checkpoint
from vlmexport.source.locate import demo_folder

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
    assert json.loads((folder / MARK).read_text())["vision"] == "clip:tiny"


def test_the_seed_decides_the_bytes(folder: Path, tmp_path: Path) -> None:
    create(TINY, tmp_path / "again")
    create(replace(TINY, seed=1), tmp_path / "other")
    first, again, other = (path / "model.safetensors" for path in (folder, tmp_path / "again", tmp_path / "other"))
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_large_designs_are_cut_in_shards(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "_SHARD", 1_000_000)
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
        ({"projector": "qformer8x100"}, r"heads of 64, 100 do not divide: use a multiple of 64$"),
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
    ("vision", "projector", "size", "tokens"),
    [
        ("clip:b16", "ldpnetv2", 384, 144),
        ("clip:b32", "pool", 256, 16),
        ("clip:b32", "linear", 224, 49),
        ("s2:clip:b16", "ldpnetv2", 384, 144),
        ("mobileformer:26m", "pixel_shuffle", 256, 16),
    ],
)
def test_the_projector_decides_on_the_image_size(vision: str, projector: str, size: int, tokens: int) -> None:
    """The next one at which its features divide, where nobody says which; of s2, that of a tile."""
    design = Design(vision, projector, "llama:tiny")
    spec = specify(design)
    scales = 2 if vision.startswith("s2") else 1
    assert spec.vision.image_size == scales * size
    assert plugins.num_tokens(spec.projector) == tokens
    assert specify(replace(design, image_size=size)) == spec
    for smaller in range(224, size, 32):
        with pytest.raises(Unsupported, match=f", such as --image-size {size}$"):
            specify(replace(design, image_size=smaller))


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


def test_fields_whose_annotations_are_types(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python 3.14 has them where a module does without `from __future__ import annotations`."""
    hints = get_type_hints(VisionSpec)
    for field in fields(VisionSpec):
        monkeypatch.setattr(field, "type", hints[field.name])
    assert open_checkpoint(folder).spec.vision == specify(TINY).vision


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


@pytest.mark.slow
def test_parts_of_a_trained_model_keep_their_weights(tmp_path: Path) -> None:
    spec = create(Design(projector="pool_max", origin="demo"), tmp_path / "other")
    demo, other = open_checkpoint(demo_folder()), open_whole(str(tmp_path / "other"))
    assert (spec.vision, spec.language) == (demo.spec.vision, demo.spec.language)
    assert spec.image_processor == other.spec.image_processor == demo.spec.image_processor
    for component in ("vision", "language"):
        assert demo.tensors[component].keys() == other.tensors[component].keys()
        for name, tensor in demo.tensors[component].items():
            assert tensor.torch().equal(other.tensors[component][name].torch()), name
    assert other.tokenizer.encode("what is it?") == demo.tokenizer.encode("what is it?")
    one, two = ReferenceRuntime(demo), ReferenceRuntime(other)
    image = picture(0, (336, 336))
    assert np.array_equal(one.features(one.pixels(image)).rows, two.features(two.pixels(image)).rows)
    assert two.tokens(two.features(two.pixels(image))).shape == (144, 256)


@pytest.mark.slow
def test_ranges_of_an_int8_projector_are_measured_behind_the_trained_encoder(tmp_path: Path) -> None:
    create(Design(projector="quantized_fbgemm", origin="demo"), tmp_path / "made")
    made = open_whole(str(tmp_path / "made"))
    low, high = made.tensors["projector"]["input_range"].torch().tolist()
    reference = ReferenceRuntime(made)
    found = np.stack([reference.features(reference.pixels(one.image())).rows for one in calibration_samples(4)])
    assert (low, high) == pytest.approx((found.min(), found.max()), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["mobilevlm", "llava-hf"])
def test_parts_of_other_layouts_can_be_taken(layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    spec = tiny_spec("mlp2x_gelu", image_size=168, vocab_size=386)
    naming, config = (original, config_of(spec)) if layout == "mobilevlm" else (hf_new, hf_config(spec))
    kept = {"torch_dtype": str(dtype).removeprefix("torch.")}
    state = published(canonical_state(spec, dtype=dtype), naming)
    folder = write_checkpoint(
        tmp_path / "source", spec, state=state, config=config | kept, kind="bin", shards=2, pieces=384
    )
    create(Design(projector="ldpnetv2", origin=str(folder)), tmp_path / "made")
    source, made = open_checkpoint(folder), open_whole(str(tmp_path / "made"))
    assert made.spec == replace(
        source.spec, name="made", layout="design", projector=replace(source.spec.projector, kind="ldpnetv2"),
        image_token_id=None, max_images=1,
    )  # fmt: skip
    for component in ("vision", "language"):
        for name, tensor in source.tensors[component].items():
            value = made.tensors[component][name].torch()
            assert value.dtype == dtype
            assert value.equal(tensor.torch()), name
    assert {tensor.torch().dtype for tensor in made.tensors["projector"].values()} == {dtype}
    assert made.tokenizer.encode("what is it?") == source.tokenizer.encode("what is it?")


def test_a_prompt_that_no_design_can_tell_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", mm_use_im_start_end=True)
    with pytest.raises(Unsupported, match=r"wants marks around the image .*: name another --language"):
        create(Design(projector="linear", origin=str(tmp_path / "source")), tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image_size": 168}, UsageError, "takes images of 336 pixels: leave out --image-size"),
        ({"vision": "clip:tiny", "projector": None}, Unsupported, "ldpnetv2 of demo makes 576 features of 192 into"),
        ({"projector": "pixel_shuffle", "vision": "clip:tiny", "image_size": 98}, Unsupported, "do not divide"),
    ],
)
def test_parts_that_do_not_fit_a_trained_model_are_refused(
    changes: dict[str, str | int | None], error: type[Exception], message: str, tmp_path: Path
) -> None:
    chosen: dict[str, Any] = {"projector": "linear", "origin": "demo"} | changes
    with pytest.raises(error, match=message):
        create(Design(**chosen), tmp_path / "none")
    assert not list(tmp_path.iterdir())


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
    pixels = reference.pixels(image)
    assert np.abs(runtime.pixels(image).pixel_values - pixels.pixel_values).max() < 1e-5
    tokens, expected = runtime.tokens(runtime.features(pixels)), reference.tokens(reference.features(pixels))
    assert cosine(tokens, expected) > least
    prompt = ask(runtime, "what is it?", len(tokens))
    assert cosine(runtime.logits(prompt, [tokens], 0), reference.logits(prompt, [expected], 0)) > least - 0.01
    runtime.close()


@pytest.mark.slow
def test_a_model_that_rounds_is_judged_as_one(tmp_path: Path) -> None:
    create(replace(TINY, projector="quantized_qnnpack"), tmp_path / "model")
    recipe = resolve("onnx-fp32", environ={})
    bundle = export(str(tmp_path / "model"), recipe, tmp_path / "bundle")
    assert read_manifest(bundle).recipe.gates == recipe.gates.behind_rounding() != recipe.gates


def cosine(a: F32, b: F32) -> float:
    """Of each row, the worst."""
    assert a.shape == b.shape
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())
