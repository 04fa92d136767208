"""Every vision encoder, whatever the folder holds: shapes, names, own pixels, ONNX in float and both int8 schemes."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vlmexport.model.vision as folder
from tests.conformance.parts import SCHEMES, measure, pixels
from tests.onnx_bundles import picture
from tests.rotation import rotating
from vlmexport.artifact.gguf.mmproj import projector_of
from vlmexport.artifact.onnx import client_files
from vlmexport.artifact.onnx.sizes import used_tower
from vlmexport.artifact.onnx.trace import components
from vlmexport.design import Design, create, specify, vision_of
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.model import load
from vlmexport.model.sketch import sketch
from vlmexport.model.vision import fastvit
from vlmexport.pipeline import open_whole

EXAMPLES = [
    str(import_module(f"{folder.__name__}.{info.name}").EXAMPLE) for info in pkgutil.iter_modules(folder.__path__)
]
# Of timm: `make test` takes the first, `make rotating` one that its seed chooses.
FAMILIES = ["timm:mobilenetv3_small_050", "timm:mobilevit_xxs", "timm:efficientformerv2_s0", "timm:fastvit_t8"]
LEFT_IN_FLOAT = {"patch embedding", "depthwise", "gate", "its signal would drown in int8", *fastvit.FLOAT.values()}


def design(text: str) -> Design:
    """Behind the smallest images that make a few features."""
    if text.startswith(("timm", "fastvit")):
        pytest.importorskip("timm", reason="timm is not installed")
    spec = vision_of(text)
    return Design(text, "linear", "llama:tiny", image_size=min(spec.image_size, 4 * spec.patch_size))


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_checkpoint_of_it_opens_and_runs(text: str, tmp_path: Path) -> None:
    spec = create(design(text), tmp_path / "model")
    checkpoint = open_whole(str(tmp_path / "model"))
    assert checkpoint.spec == spec
    vlm = load(checkpoint)
    image = picture(3)
    with torch.inference_mode():
        found = vlm.features(torch.cat([vlm.pixels(image), vlm.pixels(picture(4))]))
    assert found.shape == (2, spec.vision.num_patches, spec.vision.hidden_size)
    assert torch.isfinite(found).all()
    assert float((found[0] - found[1]).norm() / found[0].norm()) > 0.02, "features do not depend on the picture"
    assert {name for name, _ in used_tower(checkpoint)} <= set(vlm.vision.state_dict())


@pytest.mark.parametrize("text", EXAMPLES)
def test_damaged_weights_are_found_before_they_are_read(text: str, tmp_path: Path) -> None:
    create(design(text), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    state = load_file(file)
    name = next(key for key, value in state.items() if key.startswith("vision.") and value.ndim > 1)
    whole = state.pop(name)
    save_file(state, file)
    with pytest.raises(CheckpointError, match=name.removeprefix("vision.")):
        open_whole(str(tmp_path / "model"))
    save_file(state | {name: torch.zeros(3, *whole.shape)}, file)
    with pytest.raises(CheckpointError, match=r"missing|lacks|shape|sizes"):
        open_whole(str(tmp_path / "model"))


@pytest.mark.parametrize("text", EXAMPLES)
def test_pixels_are_the_encoders_own(text: str) -> None:
    """Padded in its mean colour, which normalises to about nothing; and the client's file says the same."""
    spec = specify(design(text))
    side, pixels = spec.vision.image_size, spec.image_processor
    found = sketch(spec, 1, ("vision",)).pixels(picture(0, (300, 100)))
    assert found.shape == (1, 3, side, side)
    assert float(found[:, :, 0].abs().max()) < 1 / 255 / min(pixels.image_std)
    file = client_files.preprocessor(spec)
    assert (file["image_mean"], file["image_std"]) == (list(pixels.image_mean), list(pixels.image_std))
    assert file["pad_size"] == {"width": side, "height": side}
    colour = np.array(pixels.background) / 255
    assert np.allclose(file["background_color"], 255 * (colour - pixels.image_mean) / pixels.image_std)


@pytest.mark.parametrize("text", [text for text in EXAMPLES if not text.startswith("clip")])
def test_mmproj_refuses_it_and_says_what_to_do(text: str) -> None:
    with pytest.raises(Unsupported, match="export a hybrid"):
        projector_of(specify(design(text)))


@pytest.mark.parametrize("text", [*EXAMPLES, *rotating(FAMILIES, FAMILIES[:1], 1)])
@pytest.mark.slow
def test_onnx_in_float_and_int8(text: str, tmp_path: Path) -> None:
    spec = specify(design(text))
    vlm = sketch(spec, 1, ("vision", "projector"))
    calibration, probe = (pixels(vlm, seeds) for seeds in (range(4), range(8, 10)))
    found = measure(vlm, components.trace_vision(vlm), (calibration,), (probe,), tmp_path)
    assert found.apart < 2e-5
    for scheme in SCHEMES:
        coverage = found.coverage[scheme]
        assert {reason for _, reason in coverage.float32.values()} <= LEFT_IN_FLOAT
        assert coverage.share > 0.3
        # Random weights without residuals around them let noise grow: 5 dB for MobileNetV3, 29 and more for the ViTs.
        assert found.sqnr[scheme] > (3 if text.startswith("timm:") else 10)
