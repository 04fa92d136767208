"""Calibration of a model that cuts pictures in tiles, against hooks on transformers' own model of the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.llama_quantize import read_imatrix
from tests.onnx_bundles import picture
from tests.smolvlm import LOOK, PICTURES, SIDE, TOKENS, asked_of, write_model
from vlmexport.artifact.gguf.imatrix import as_file, from_statistics
from vlmexport.artifact.gguf.imatrix_reader import read
from vlmexport.artifact.gguf.language import importance_names
from vlmexport.calibrate import Sample, Statistics, calibration_samples, collect
from vlmexport.calibrate.cache import key
from vlmexport.calibrate.views import ViewCount
from vlmexport.checkpoint.spec import Size
from vlmexport.measure import calibrated
from vlmexport.model import load
from vlmexport.pipeline import calibrate_to, export
from vlmexport.processing.image import VIEWS_AT_ONCE
from vlmexport.recipe import resolve
from vlmexport.source.checkpoint import COMPONENTS, open_checkpoint

ANSWER = "a chat"
OF_TOWER = ("vision.encoder.layers.0.self_attn.q_proj", "vision.encoder.layers.1.mlp.fc2", "projector.proj")
OF_DECODER = ("language.model.layers.0.self_attn.q_proj", "language.model.layers.0.mlp.down_proj")
THEIRS = {
    "vision": "model.vision_model", "projector.proj": "model.connector.modality_projection.proj",
    "language.model": "model.text_model",
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("tiles") / "model"
    return folder, *write_model(folder, "smolvlm")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Of pictures in 3x4, 4x4 and 4x1 tiles."""
    return [
        Sample(f"{number}", f"{number}", str(LOOK.content[1]), lambda n=number, s=size: picture(n, s), ANSWER,
               drawn=f"{size}")
        for number, size in enumerate(PICTURES)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def statistics(saved: tuple[Path, Any, Any], samples: list[Sample]) -> Statistics:
    checkpoint = open_checkpoint(saved[0])
    return collect(load(checkpoint), checkpoint.prompts, samples)


def their_name(path: str) -> str:
    ours = next(prefix for prefix in THEIRS if path.startswith(prefix))
    return THEIRS[ours] + path.removeprefix(ours)


@contextmanager
def watched(model: torch.nn.Module, paths: tuple[str, ...]) -> Iterator[dict[str, list[np.ndarray]]]:
    """What goes into layers, by our path: f32 [rows, columns] of each pass."""
    rows: dict[str, list[np.ndarray]] = {path: [] for path in paths}

    def keep(path: str) -> Any:
        return lambda _, inputs: rows[path].append(inputs[0].flatten(0, -2).double().numpy())

    handles = [model.get_submodule(their_name(path)).register_forward_pre_hook(keep(path)) for path in paths]
    try:
        with torch.inference_mode():
            yield rows
    finally:
        for handle in handles:
            handle.remove()


def test_statistics_are_of_what_transformers_sees(
    saved: tuple[Path, Any, Any], samples: list[Sample], statistics: Statistics
) -> None:
    """All views alike in tower and projector; visual positions and text in the decoder."""
    _, model, made = saved
    is_image = []
    with watched(model, OF_TOWER + OF_DECODER) as rows:
        for sample in samples:
            given = dict(asked_of(made, [LOOK], [sample.image()]))
            ids = [*made.tokenizer.encode(ANSWER), made.tokenizer.eos_token_id]
            whole = torch.cat([given["input_ids"], torch.tensor([ids])], 1)
            model(**given | {"input_ids": whole, "attention_mask": torch.ones_like(whole)})
            is_image.append((whole[0] == model.config.image_token_id).numpy())
    image = np.concatenate(is_image)
    for path in OF_TOWER + OF_DECODER:
        layer, seen = statistics.layers[path], np.concatenate(rows[path])
        of_image = image if path in OF_DECODER else np.ones(len(seen), np.bool_)
        assert (layer.count_image, layer.count_text) == (of_image.sum(), (~of_image).sum()), path
        assert (layer.minimum, layer.maximum) == pytest.approx((seen.min(), seen.max()), rel=1e-4), path
        assert layer.sum_sq_image == pytest.approx(np.square(seen[of_image]).sum(0), rel=1e-4), path
        assert layer.sum_sq_text == pytest.approx(np.square(seen[~of_image]).sum(0), rel=1e-4), path
        expected = np.histogram(seen, layer.histogram.edges)[0]
        assert np.abs(layer.histogram.counts - expected).sum() <= 1e-3 * seen.size, path


def test_views_are_counted_by_kind(
    saved: tuple[Path, Any, Any], samples: list[Sample], statistics: Statistics, tmp_path: Path
) -> None:
    """As many as transformers' processor cuts; the view of the whole is the last of each."""
    folder, _, made = saved
    cut = [len(made.image_processor([sample.image()])["pixel_values"][0]) for sample in samples]
    assert statistics.views == ViewCount(sum(cut) - len(cut), len(cut)) == ViewCount(12 + 16 + 4, 3)
    checkpoint = open_checkpoint(folder)
    tower = collect(load(checkpoint, components=COMPONENTS[:2]), checkpoint.prompts, samples)
    assert tower.views == statistics.views
    assert tower.sha256() == statistics.only(COMPONENTS[:2]).sha256()
    tower.save(tmp_path / "kept.safetensors")
    assert Statistics.load(tmp_path / "kept.safetensors").views == tower.views
    assert (tower + statistics).views == ViewCount(64, 6)


def test_calibrate_says_how_many_views_it_saw(saved: tuple[Path, Any, Any], tmp_path: Path) -> None:
    _, _, made = saved
    seen = [made.image_processor([sample.image()])["pixel_values"][0] for sample in calibration_samples(2)]
    found = calibrate_to(str(saved[0]), tmp_path / "s.safetensors", 2)
    assert found == {"layers": found["layers"], "samples": 2, "tiles": sum(map(len, seen)) - 2, "whole": 2}


def test_the_tower_is_given_a_slice_of_the_views(saved: tuple[Path, Any, Any], samples: list[Sample]) -> None:
    """So memory does not grow with them."""
    checkpoint = open_checkpoint(saved[0])
    vlm, given = load(checkpoint, components=COMPONENTS[:2]), []
    patches = vlm.get_submodule("vision.embeddings.patch_embedding")
    patches.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].shape))
    collect(vlm, checkpoint.prompts, samples[1:2])
    assert given == [(VIEWS_AT_ONCE, 3, SIDE, SIDE)] * 17


def test_another_budget_of_views_is_another_calibration(saved: tuple[Path, Any, Any], samples: list[Sample]) -> None:
    checkpoint = open_checkpoint(saved[0])
    views = replace(checkpoint.spec.image_processor, size=Size(longest_edge=2 * SIDE))
    fewer = replace(checkpoint, spec=replace(checkpoint.spec, image_processor=views))
    assert key(checkpoint, samples) != key(fewer, samples)


def test_the_importance_matrix_has_seen_the_visual_positions_of_all_views(
    saved: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    """Nobody asks for it: ``q4_k_m`` as it is."""
    folder, _, made = saved
    bundle = export(str(folder), resolve("gguf-q4_k_m", {"calibration.samples": 2}, environ={}), tmp_path / "bundle")
    views = sum(len(made.image_processor([one.image()])["pixel_values"][0]) for one in calibration_samples(2))
    spec, counted = open_checkpoint(folder).spec, calibrated(open_checkpoint(folder), 2)
    names = importance_names(spec.language)
    for path, name in names.items():
        layer = counted.layers[path]
        at_head = path == "language.lm_head"  # which reads what decides a token of the answer alone
        assert layer.count_image == (0 if at_head else views * TOKENS), path
        assert read(bundle / "imatrix.gguf").columns[name].count == round(0.3 * layer.count_image + layer.count_text)
    assert len(names) == 7 + 1
    text = from_statistics(counted, names, 0.0)
    as_file("text.gguf", text).write(tmp_path)
    both, alone = (read_imatrix(file)[-1] for file in (bundle / "imatrix.gguf", tmp_path / "text.gguf"))
    down = "blk.0.ffn_down.weight"
    assert not np.allclose(both[down], alone[down], rtol=1e-2)
    assert asdict(counted.views) == {"tiles": views - 2, "whole": 2}
