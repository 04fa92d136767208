"""Several views of a picture in libmtmd: an mmproj of Idefics3's kind with random weights, against transformers' own
tower and connector, and against the views that are cut here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Idefics3Config
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector, Idefics3VisionTransformer

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.gguf_bundles import export
from tests.onnx_bundles import picture
from vlmexport.artifact.bundle.source import ImageProcessor
from vlmexport.artifact.gguf.file import GgufFile
from vlmexport.artifact.gguf.rows import Entry
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.processing.image import process
from vlmexport.processing.prompt import Grid, Views
from vlmexport.runtime.llamacpp.halves import LlamaCppHalves
from vlmexport.runtime.llamacpp.vision import LlamaCppVision
from vlmexport.runtime.stages import F32, Features
from vlmexport.source.checkpoint import open_checkpoint

SIDE, LONGEST, WIDTH, HIDDEN = 64, 256, 32, 256
SPEC = ImageProcessorSpec.tiles(LONGEST, SIDE)
NAMES = {
    "embeddings.patch_embedding": "v.patch_embd", "embeddings.position_embedding": "v.position_embd",
    "post_layernorm": "v.post_ln", "encoder.layers.": "v.blk.", "layer_norm": "ln", "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down", "self_attn.out_proj": "attn_out", "self_attn.": "attn_", "_proj": "",
}  # fmt: skip
"""Parts of transformers' names, and of libmtmd's."""


@pytest.fixture(scope="module")
def model() -> tuple[nn.Module, nn.Module]:
    config = Idefics3Config(
        vision_config={
            "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIDE, "patch_size": 8,
        },
        text_config={"model_type": "llama", "hidden_size": HIDDEN, "num_attention_heads": 4}, scale_factor=2,
    )  # fmt: skip
    torch.manual_seed(0)
    parts = Idefics3VisionTransformer(config.vision_config).eval(), Idefics3Connector(config).eval()
    for part in parts:
        for parameter in part.parameters():
            spread = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            nn.init.normal_(parameter, mean=0.5 * (parameter.ndim == 1), std=spread)
    return parts


@pytest.fixture(scope="module")
def vision(model: tuple[nn.Module, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppVision]:
    folder = tmp_path_factory.mktemp("views")
    state = {f"mm.model.fc.{name.rpartition('.')[2]}": value for name, value in model[1].state_dict().items()}
    for name, value in model[0].state_dict().items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        state[name] = value
    entries = [Entry(name, tuple(value.shape), "f32", value.numpy()) for name, value in state.items()]
    fields = {"image_size": SIDE, "preproc_image_size": LONGEST, "patch_size": 8, "embedding_length": WIDTH,
              "feed_forward_length": 64, "block_count": 2, "projection_dim": HIDDEN, "attention.head_count": 2,
              "projector.scale_factor": 2}  # fmt: skip
    GgufFile(
        "mmproj.gguf", "clip",
        {
            "clip.has_vision_encoder": ("bool", True), "clip.projector_type": ("str", "idefics3"),
            "clip.use_gelu": ("bool", True), "clip.vision.attention.layer_norm_epsilon": ("f32", 1e-6),
            "clip.vision.image_mean": ("f32[]", [0.5] * 3), "clip.vision.image_std": ("f32[]", [0.5] * 3),
            **{f"clip.vision.{name}": ("u32", value) for name, value in fields.items()},
        },
        entries,
    ).write(folder, threads=1)  # fmt: skip
    checkpoint = open_checkpoint(write_checkpoint(folder / "language", tiny_spec("mlp2x_gelu", image_size=56)))
    manifest = export(checkpoint, folder / "bundle", type="f32", mmproj_type="f32")
    (folder / "mmproj.gguf").rename(folder / "bundle" / manifest.seeing.file("mmproj"))
    spec = manifest.source.spec
    tower = spec.vision.model_copy(update={"image_size": SIDE})
    spec = spec.model_copy(update={"image_processor": ImageProcessor.of(SPEC), "vision": tower})
    manifest = manifest.model_copy(update={"source": manifest.source.model_copy(update={"spec": spec})})
    with closing(LlamaCppHalves(folder / "bundle", manifest)) as halves:
        yield halves.seeing()


@pytest.mark.parametrize(("size", "tiles"), [((256, 256), (4, 4)), ((200, 120), (3, 4)), ((640, 480), (3, 4))])
def test_pixels_of_all_views(size: tuple[int, int], tiles: Grid, vision: LlamaCppVision) -> None:
    """Tiles row by row, then the whole, as libmtmd itself cuts them."""
    image = picture(4, size)
    found, expected = vision.preprocess(image, own=False), process(image, SPEC, (4, 4))
    assert found.views == expected.views == Views(((4, 4),) * (tiles[0] * tiles[1] + 1), tiles)
    np.testing.assert_allclose(found.pixel_values, expected.pixel_values, atol=1e-6)
    assert np.array_equal(vision.pixels(image).pixel_values, expected.pixel_values)


def test_features_and_tokens_of_each_view(vision: LlamaCppVision, model: tuple[nn.Module, nn.Module]) -> None:
    """Features that are given go to the projector alone."""
    image = vision.pixels(picture(5, (300, 200)))
    with torch.inference_mode():
        features = model[0](torch.from_numpy(image.pixel_values.copy())).last_hidden_state
        tokens = model[1](features).flatten(0, 1).numpy()
    found = vision.features(image)
    assert [view.shape for view in found.views] == [(64, WIDTH)] * len(image.views.grids)
    assert apart(found.rows, features.flatten(0, 1).numpy()) < 2e-3
    assert apart(vision.tokens(Features(tuple(features.numpy()))), tokens) < 1e-3
    assert apart(vision.tokens(found), tokens) < 2e-3
    assert vision.stock([picture(5, (300, 200))]) is None


def apart(found: F32, expected: F32) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
