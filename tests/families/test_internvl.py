"""InternVL against transformers' own classes and processor, on weights that they saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor

from tests.internvl import KINDS, TEMPLATE, new_model, processor, tokenizer, write_model
from tests.onnx_bundles import picture
from tests.processing.test_canvas import SIZES
from tests.smolvlm import CONVERSATIONS, LOOK, asked_of
from vlmexport.errors import CheckpointError, Unsupported, UsageError
from vlmexport.families import internvl
from vlmexport.families.reading.published import Published
from vlmexport.model import VLM, load
from vlmexport.model.plugins import check_parts, token_grid
from vlmexport.processing.image import process
from vlmexport.processing.messages import Message, Picture
from vlmexport.processing.prompt import PLACEHOLDER
from vlmexport.report.inspection import inspection
from vlmexport.source.checkpoint import open_checkpoint

CLOSE = 1e-5
"""The norm of a difference by that of the expected values."""

PICTURES = ((300, 220), (28, 28), (20, 90))
"""Twelve tiles, one view, and a strip."""

Model = InternVLForConditionalGeneration
Saved = dict[str, tuple[Path, Model, InternVLProcessor]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A folder, the model and the processor with each language model."""
    root = tmp_path_factory.mktemp("internvl")
    return {kind: (root / kind, *write_model(root / kind, kind)) for kind in KINDS}


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= CLOSE * expected.norm()


@torch.inference_mode()
def check_stages(path: Path, model: Model, made: InternVLProcessor, name: str) -> None:
    """All stages of one conversation: pixels, features, tokens, ids of the prompt, logits, greedy ids."""
    messages, checkpoint = CONVERSATIONS[name], open_checkpoint(path)
    ours, count = load(checkpoint), sum(part is Picture.NEXT for message in messages for part in message.content)
    images = [picture(number, size) for number, size in enumerate(PICTURES[:count])]
    given = asked_of(made, messages, images)
    seen = [ours.see(image) for image in images]
    if images:
        pixels = torch.cat([ours.pixels(image) for image in images])
        assert (pixels - given["pixel_values"]).abs().max() <= CLOSE
        expected = model.model.get_image_features(given["pixel_values"], return_dict=True)
        same(ours.features(pixels), expected.last_hidden_state[:, 1:])
        same(torch.cat([one.tokens for one in seen]), expected.pooler_output.flatten(0, 1))
    prompt = checkpoint.prompts.prompt(messages, [one.views for one in seen])
    image = model.config.image_token_id
    assert [image if i == PLACEHOLDER else i for i in prompt.ids] == given["input_ids"][0].tolist()
    assert [(span.image, span.view) for span in prompt.spans] == [
        (number, view) for number, one in enumerate(seen) for view in range(len(one.views.grids))
    ]
    inputs = ours.inputs(prompt, [one.tokens for one in seen])
    same(ours.logits(inputs, 0), model(**given).logits)
    answer = model.generate(**given, max_new_tokens=12, do_sample=False)[0, len(prompt.ids) :].tolist()
    assert [token for token, _ in ours.generate(inputs, 12)] == answer


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("qwen2", "question"), ("qwen2", "turns"), ("qwen2", "two-images"), ("qwen3", "between"), ("qwen3", "alone"),
        ("llama", "text-first"), ("llama", "no-image"),
    ],
)  # fmt: skip
def test_every_stage_is_that_of_transformers(kind: str, name: str, saved: Saved) -> None:
    path, model, made = saved[kind]
    check_stages(path, model, made, name)
    check_parts(open_checkpoint(path))


def test_prompts_of_pictures_of_all_sizes(saved: Saved) -> None:
    """Each beside another one: as many image tokens as transformers' processor writes, and its ids."""
    path, model, made = saved["qwen2"]
    checkpoint = open_checkpoint(path)
    sizes = [(width * 28 // 32, height) for width, height in SIZES] + list(SIZES)
    assert len(set(sizes)) >= 40
    for one, other in zip(sizes, reversed(sizes), strict=True):
        images = [picture(0, (max(width, 1), height)) for width, height in (one, other)]
        views = [process(image, checkpoint.spec.image_processor, (2, 2)).views for image in images]
        prompt = checkpoint.prompts.prompt(CONVERSATIONS["two-images"], views)
        expected = asked_of(made, CONVERSATIONS["two-images"], images)["input_ids"][0].tolist()
        assert [model.config.image_token_id if i == PLACEHOLDER else i for i in prompt.ids] == expected


def test_the_spec(saved: Saved) -> None:
    for kind, (path, _, made) in saved.items():
        spec = open_checkpoint(path).spec
        assert (spec.layout, spec.language.kind, spec.vision.kind) == ("internvl", kind, "internvit")
        assert (spec.projector.kind, spec.projector.in_tokens) == ("pixel_shuffle", 16)
        assert (spec.vision.select_layer, spec.vision.used_layers) == (-1, 4)
        assert (spec.image_processor.side, spec.image_processor.max_patches) == (28, 12)
        assert spec.image_processor.do_image_splitting
        assert (spec.bos_token_id, spec.max_images, spec.language.rope_scaling) == (None, None, None)
        assert spec.stop_token_ids == (made.tokenizer.eos_token_id,)
        assert not spec.language.tie_word_embeddings


def test_inspect_tells_of_views(saved: Saved) -> None:
    facts = inspection(open_checkpoint(saved["qwen3"][0]))
    assert (facts["visual_tokens"], facts["views"]) == (4, 13)


def test_a_layer_before_the_last(tmp_path: Path) -> None:
    tokens = tokenizer()
    model, made = new_model("qwen2", tokens, vision_feature_layer=-2), processor(tokens)
    model.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path)
    assert opened.spec.vision.used_layers == 3
    with torch.inference_mode():
        pixels = load(opened).pixels(picture(0))
        expected = model.model.get_image_features(pixels, output_hidden_states=True, return_dict=True)
        same(load(opened).features(pixels), expected.hidden_states[-2][:, 1:])
        same(load(opened).tokens(load(opened).features(pixels)), expected.pooler_output)


def test_a_fine_tune(tmp_path: Path) -> None:
    """bfloat16, an embedding of another size with an added token, a head that is the embedding, and no biases of
    queries in the tower."""
    tokens = tokenizer()
    vision = InternVLConfig().vision_config.to_dict() | {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2,
        "image_size": [28, 28], "patch_size": [7, 7], "attention_bias": False,
    }  # fmt: skip
    model = new_model("qwen3", tokens, tie_word_embeddings=True, vision_config=vision)
    tokens.add_tokens(["<new>"])
    model.resize_token_embeddings(len(tokens))
    made = processor(tokens, max_patches=6)
    model.bfloat16().save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path)
    assert "lm_head.weight" not in opened.tensors["language"]
    assert (opened.spec.language.vocab_size, opened.spec.torch_dtype) == (len(tokens), "bfloat16")
    assert opened.spec.image_processor.max_patches == 6
    check_stages(tmp_path, Model.from_pretrained(tmp_path, dtype=torch.float32).eval(), made, "question")


def test_a_head_of_its_own_counts_though_the_config_does_not_say_so(saved: Saved, tmp_path: Path) -> None:
    """As published: the outer word is true where nothing is said."""
    folder = shutil.copytree(saved["qwen2"][0], tmp_path / "sparse")
    edit(folder, lambda config: config.pop("tie_word_embeddings"))
    model = Model.from_pretrained(folder, dtype=torch.float32).eval()
    assert not open_checkpoint(folder).spec.language.tie_word_embeddings
    check_stages(folder, model, saved["qwen2"][2], "no-image")


@pytest.mark.parametrize(
    ("name", "placed"),
    [
        ("model.vision_tower.encoder.layer.0.lambda_1", ("vision", "encoder.layer.0.lambda_1")),
        ("vision_tower.embeddings.cls_token", ("vision", "embeddings.cls_token")),
        ("model.multi_modal_projector.layer_norm.bias", ("projector", "0.bias")),
        ("multi_modal_projector.linear_1.weight", ("projector", "1.weight")),
        ("model.multi_modal_projector.linear_2.weight", ("projector", "3.weight")),
        ("model.language_model.layers.0.self_attn.q_norm.w", ("language", "model.layers.0.self_attn.q_norm.w")),
        ("language_model.model.norm.weight", ("language", "model.norm.weight")),
        ("language_model.lm_head.weight", ("language", "lm_head.weight")),
        ("lm_head.weight", ("language", "lm_head.weight")),
    ],
)  # fmt: skip
def test_every_spelling_is_placed(name: str, placed: tuple[str, str]) -> None:
    assert internvl.place(name) == placed


def edit(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "config.json") -> None:
    config = json.loads((folder / name).read_text())
    change(config)
    (folder / name).write_text(json.dumps(config))


def in_vision(**keys: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["vision_config"].update(keys)


REFUSED: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "qk-norm": ("config.json", in_vision(use_qk_norm=True), "queries and keys that are normed .*InternViT of 6B"),
    "rms-norm": ("config.json", in_vision(norm_type="rms_norm"), "RMSNorm .*vision_config.norm_type is 'rms_norm'"),
    "last-norm": ("config.json", in_vision(use_mean_pooling=False), "use_mean_pooling"),
    "positions": (
        "config.json", in_vision(use_absolute_position_embeddings=False), "use_absolute_position_embeddings is false"
    ),
    "sizes": ("config.json", in_vision(image_size=[56, 56]), "vision_config.image_size is 56, the tensors say 28"),
    "oblong": ("config.json", in_vision(image_size=[56, 28]), r"image_size .*is no square"),
    "heads": ("config.json", in_vision(num_attention_heads=3), "a tower 64 wide cannot have 3 heads"),
    "layers": (
        "config.json", lambda config: config.update(vision_feature_layer=[-1, -2]), "features of several layers"
    ),
    "deep": ("config.json", lambda config: config.update(vision_feature_layer=9), "layer 9 of 4 is selected"),
    "class-token": (
        "config.json", lambda config: config.update(vision_feature_select_strategy="full"),
        "vision_feature_select_strategy is \"full\"",
    ),
    "ratio": ("config.json", lambda config: config.update(downsample_ratio=0.25), "downsample_ratio is 0.25"),
    "act": (
        "config.json", lambda config: config.update(projector_hidden_act="relu"), "projector_hidden_act is \"relu\""
    ),
    "language": (
        "config.json", lambda config: config["text_config"].update(model_type="phi3"),
        "a 'phi3' language model is not known",
    ),
    "window": (
        "config.json", lambda config: config["text_config"].update(use_sliding_window=True), "sliding window"
    ),
    "length": (
        "processor_config.json", lambda config: config.update(image_seq_length=256),
        "image_seq_length is 256, a view has 4 visual tokens",
    ),
    "other-side": (
        "processor_config.json", lambda config: config["image_processor"].update(size={"height": 56, "width": 56}),
        "the image processor makes 56 pixels, the tower takes 28",
    ),
    "square": (
        "processor_config.json", lambda config: config.update(image_processor={"size": 28, "crop_size": 28}),
        "the image processor cuts no tiles",
    ),
    "no-processor": (
        "processor_config.json", lambda config: config.pop("image_processor"), "has no preprocessor_config.json"
    ),
    "token": ("config.json", lambda config: config.update(image_token_id=3), "<IMG_CONTEXT> is 3 in config.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_known_is_refused_by_name(name: str, saved: Saved, tmp_path: Path) -> None:
    file, change, message = REFUSED[name]
    folder = shutil.copytree(saved["qwen2"][0], tmp_path / "model")
    edit(folder, change, file)
    with pytest.raises((Unsupported, CheckpointError), match=message) as caught:
        _ = open_checkpoint(folder).tokenizer
    assert "\n" not in str(caught.value)
    assert caught.value.cure


def test_without_a_chat_template(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved["qwen2"][0], tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="has no chat template"):
        open_checkpoint(folder)


def test_the_question_may_not_hold_the_image_token(saved: Saved) -> None:
    checkpoint = open_checkpoint(saved["qwen2"][0])
    views = process(picture(0), checkpoint.spec.image_processor, (2, 2)).views
    with pytest.raises(UsageError, match="the question holds <IMG_CONTEXT>"):
        checkpoint.prompts.prompt((LOOK, Message("user", ("<IMG_CONTEXT>",))), [views])


QWEN2 = {"model_type": "qwen2", "num_key_value_heads": 2, "vocab_size": 151674}
QWEN3 = {"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "InternVL3-1B-hf": (QWEN2 | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    }, 938_193_024),
    "InternVL3-2B-hf": (QWEN2 | {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    }, 2_088_957_440),
    "InternVL2_5-2B-MPO-hf": ({
        "model_type": "llama", "num_key_value_heads": 8, "vocab_size": 92553, "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16,
    }, 2_205_754_368),
    "InternVL2_5-4B-MPO-hf": (QWEN2 | {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
    }, 3_712_637_952),
    "InternVL3_5-1B-HF": (QWEN3 | {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    }, 1_060_897_792),
    "InternVL3_5-2B-HF": (QWEN3 | {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
    }, 2_348_347_392),
    "InternVL3_5-4B-HF": (QWEN3 | {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    }, 4_732_489_216),
}  # fmt: skip
"""Language model and number of parameters, as expected of what is published, 0.94, 2.09, 2.21, 3.71, 1.06, 2.35 and
4.73 B."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str, tmp_path: Path) -> None:
    """Every shape is that of transformers' class of that size, and there are as many parameters as published."""
    text, count = PUBLISHED[name]
    vision = {"attention_bias": True}
    config = {"model_type": "internvl", "vision_config": vision, "text_config": {"eos_token_id": 2, **text}}
    with torch.device("meta"):
        model = Model(InternVLConfig(vision_config=vision, text_config=text))
    pixels = {"image_processor_type": "GotOcr2ImageProcessorFast", "size": {"height": 448, "width": 448}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {"vision": {}, "projector": {}, "language": {}}
    for key, value in model.state_dict().items():
        part, canonical = internvl.place(key)
        shapes[part][canonical] = tuple(value.shape)
    spec = internvl.spec(Published(tmp_path, name, config, shapes))
    vlm = VLM(spec)
    theirs = {f"{part}.{key}": shape for part, found in shapes.items() for key, shape in found.items()}
    assert {key: tuple(value.shape) for key, value in vlm.state_dict().items()} == theirs
    assert (token_grid(spec.projector), spec.vision.layer_norm_eps) == ((16, 16), 1e-6)
    assert sum(value.numel() for value in vlm.state_dict().values()) == count
