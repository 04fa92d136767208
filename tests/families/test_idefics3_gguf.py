"""GGUF of a model that sees tiles: an mmproj under llama.cpp's own names, and five stages through libmtmd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from tests.families.test_idefics3_bundle import sample
from tests.gguf_bundles import export, metadata, shapes
from tests.smolvlm import LONGEST, SIDE
from tests.smolvlm_bundle import Built
from vlmexport import families
from vlmexport.artifact.gguf import mmproj
from vlmexport.errors import Unsupported
from vlmexport.model.plugins import gguf_tower
from vlmexport.parity.check import check
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint


@pytest.fixture(scope="module")
def smolvlm(tiny_smolvlm: Built) -> Checkpoint:
    return open_checkpoint(tiny_smolvlm[2].parent / "model")


@pytest.fixture(scope="module")
def bundle(smolvlm: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles") / "bundle"
    export(smolvlm, folder, type="f32", mmproj_type="f32")
    return folder


@pytest.mark.usefixtures("short_answers")
@pytest.mark.slow
def test_five_stages(bundle: Path) -> None:
    """Pixels of all tiles, too, for libmtmd cuts them as the model's processor does."""
    result = check(bundle, samples=[sample(seed) for seed in range(20)])
    assert result.passed, result.stages


def test_names_are_those_of_llama_cpp(bundle: Path, smolvlm: Checkpoint) -> None:
    """As its package of names maps transformers' own."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, smolvlm.spec.vision.num_layers)
    theirs = {f"model.vision_model.{name}" for name in smolvlm.tensors["vision"]}
    theirs |= {f"model.connector.modality_projection.{name}" for name in smolvlm.tensors["projector"]}
    expected = {names.get_name(name, try_suffixes=(".weight", ".bias")) for name in theirs}
    path = next(bundle.glob("mmproj-*"))
    assert set(shapes(path)) == expected
    held = metadata(path)
    assert held["clip.projector_type"] == "idefics3"
    assert (held["clip.vision.image_size"], held["clip.vision.preproc_image_size"]) == (SIDE, LONGEST)
    assert held["clip.vision.projector.scale_factor"] == 4
    assert "clip.vision.feature_layer" not in held


def test_what_libmtmd_does_otherwise_is_said(smolvlm: Checkpoint) -> None:
    def notes(**changes: object) -> tuple[str, ...]:
        pixels = replace(smolvlm.spec.image_processor, **changes)
        return families.gguf(smolvlm.family, replace(smolvlm.spec, image_processor=pixels)).notes

    size = smolvlm.spec.image_processor.size
    assert notes() == ()
    assert "twice" in notes(do_image_splitting=False)[0]
    assert "twice" in notes(size=replace(size, longest_edge=SIDE))[0]
    assert "256 pixels at once, the model to 200 first" in notes(size=replace(size, longest_edge=200))[0]
    assert "256 pixels, the model cuts it as large as it is" in notes(do_resize=False)[0]
    assert "twice" in notes(do_resize=False, do_image_splitting=False)[0]
    assert "Lanczos" in notes(resample=3)[0]


def test_layers_that_are_not_in_use(smolvlm: Checkpoint) -> None:
    with pytest.raises(Unsupported, match="cannot stop at hidden state 1"):
        gguf_tower(replace(smolvlm.spec.vision, select_layer=-2))


def test_what_libmtmd_does_not_join(smolvlm: Checkpoint, tiny: Checkpoint) -> None:
    """Its graph of a tower is that of the projector behind it, and so are its pictures."""
    square = replace(smolvlm.spec, image_processor=tiny.spec.image_processor)
    mlp = replace(smolvlm.spec, projector=replace(smolvlm.spec.projector, kind="mlp2x_gelu"))
    for spec, words in (
        (square, r"another way before idefics3 \(tiles\)"), (mlp, "no mlp behind a 'idefics3' tower"),
        (replace(tiny.spec, projector=replace(tiny.spec.projector, kind="shuffle4_linear")), "no idefics3 behind"),
    ):  # fmt: skip
        with pytest.raises(Unsupported, match=words):
            mmproj.projector_of(spec)
