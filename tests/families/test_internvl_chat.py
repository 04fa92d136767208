"""InternVL in OpenGVLab's own layout: transformers' model of the same weights under its names, the README's prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLForConditionalGeneration, InternVLProcessor

from tests.internvl import KINDS, new_model, own_config, processor, tokenizer, write_own
from tests.onnx_bundles import picture
from tests.smolvlm import CONVERSATIONS, asked_of
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families import internvl_chat
from vlmexport.families.reading.internvl_prompts import CONVERSATIONS as PROMPTS
from vlmexport.model import load
from vlmexport.model.plugins import check_parts
from vlmexport.processing.messages import Message, Picture, asked
from vlmexport.processing.prompt import PLACEHOLDER, Views
from vlmexport.source.checkpoint import open_checkpoint

CLOSE = 1e-5
"""The norm of a difference by that of the expected values."""

Saved = dict[str, tuple[Path, InternVLForConditionalGeneration, InternVLProcessor]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A folder, and the model and the processor of transformers' that it is of, with each language model."""
    root, found = tmp_path_factory.mktemp("own"), {}
    for kind in KINDS:
        tokens = tokenizer()
        model, made = new_model(kind, tokens), processor(tokens)
        found[kind] = (write_own(root / kind, model, made), model, made)
    return found


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= CLOSE * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_every_stage_is_that_of_transformers(kind: str, saved: Saved) -> None:
    """Of two images: pixels, features, tokens, logits, greedy ids. Query, key and value were one tensor."""
    path, model, made = saved[kind]
    checkpoint = open_checkpoint(path)
    check_parts(checkpoint)
    ours, images = load(checkpoint), [picture(0, (300, 220)), picture(1, (28, 28))]
    pixels = asked_of(made, CONVERSATIONS["two-images"], images)["pixel_values"]
    seen = [ours.see(image) for image in images]
    assert (torch.cat([ours.pixels(image) for image in images]) - pixels).abs().max() <= CLOSE
    expected = model.model.get_image_features(pixels, return_dict=True)
    same(ours.features(pixels), expected.last_hidden_state[:, 1:])
    same(torch.cat([one.tokens for one in seen]), expected.pooler_output.flatten(0, 1))
    prompt = checkpoint.prompts.prompt(CONVERSATIONS["two-images"], [one.views for one in seen])
    ids = torch.tensor([[model.config.image_token_id if i == PLACEHOLDER else i for i in prompt.ids]])
    inputs = ours.inputs(prompt, [one.tokens for one in seen])
    same(ours.logits(inputs, 0), model(input_ids=ids, pixel_values=pixels).logits)
    answer = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert [token for token, _ in ours.generate(inputs, 12)] == answer.tolist()


SENTENCES = {
    "internvl2_5": (
        "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
    ),
    "Hermes-2": (
        "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
    ),
}


@pytest.mark.parametrize(("name", "line"), [("internvl2_5", "\n"), ("Hermes-2", "")])
def test_prompts_are_those_of_the_readme(name: str, line: str, saved: Saved, tmp_path: Path) -> None:
    """``<image>`` and a line break before the question, then tokens in place of ``<image>``, then one tokenization, by
    the tokenizer of transformers; a turn ends with a line break in one of the conversations."""
    path, _, made = saved["qwen2"]
    folder = shutil.copytree(path, tmp_path / "model")
    edit(folder, lambda config: config.update(template=name))
    prompts, views = open_checkpoint(folder).prompts, Views(((2, 2),) * 3, (1, 2))
    context = f"<img>{'<IMG_CONTEXT>' * 12}</img>"
    start = f"<|im_start|>system\n{SENTENCES[name]}<|im_end|>{line}<|im_start|>user\n"
    end = f"<|im_end|>{line}<|im_start|>assistant\n"
    answered = (*asked("What is it?"), Message("assistant", ("A chat.",)), Message("user", ("Sure?",)))
    kind = (Message("system", ("Be kind.",)), Message("user", ("Hi",)))
    expected = {
        f"{start}{context}\nWhat is it?{end}": (asked("What is it?"), 1),
        f"{start}{context}\nWhat is it?{end}A chat.<|im_end|>{line}<|im_start|>user\nSure?{end}": (answered, 1),
        f"{start}Image-1: {context}\nImage-2: {context}\nWhich?{end}": (
            (Message("user", ("Image-1: ", Picture.NEXT, "Image-2: ", Picture.NEXT, "Which?")),), 2
        ),
        f"{start}Hi{end}": ((Message("user", ("Hi",)),), 0),
        f"<|im_start|>system\nBe kind.<|im_end|>{line}<|im_start|>user\nHi{end}": (kind, 0),
    }  # fmt: skip
    image = made.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    for text, (messages, count) in expected.items():
        prompt = prompts.prompt(messages, [views] * count)
        ids = [image if i == PLACEHOLDER else i for i in prompt.ids]
        assert ids == made.tokenizer(text)["input_ids"]
    assert prompts.end_of_turn == made.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_spec(saved: Saved) -> None:
    for kind, (path, model, made) in saved.items():
        spec = open_checkpoint(path).spec
        assert (spec.layout, spec.language.kind, spec.vision.kind) == ("internvl-chat", kind, "internvit")
        pixels = spec.image_processor
        assert (pixels.mode, pixels.side, pixels.min_patches, pixels.max_patches) == ("canvas", 28, 1, 12)
        assert (pixels.image_mean, pixels.image_std) == (
            made.image_processor.image_mean,
            made.image_processor.image_std,
        )
        assert (spec.vision.select_layer, spec.image_token_id) == (-1, model.config.image_token_id)
        assert spec.stop_token_ids == (made.tokenizer.convert_tokens_to_ids("<|im_end|>"),)


def test_one_view_where_the_config_says_so(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved["qwen2"][0], tmp_path / "model")
    edit(folder, lambda config: config.update(dynamic_image_size=False))
    assert open_checkpoint(folder).spec.image_processor.max_patches == 1
    edit(folder, lambda config: config.update(dynamic_image_size=True, max_dynamic_patch=6))
    assert open_checkpoint(folder).spec.image_processor.max_patches == 6


def test_a_config_of_older_versions(saved: Saved, tmp_path: Path) -> None:
    """As InternVL2's: rotary embeddings in the old keys, and another system sentence."""
    path, model, made = saved["qwen2"]
    text = own_config(model)["llm_config"]
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    text |= {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "dtype": None, "sliding_window": 131072}
    found = open_checkpoint(write_own(tmp_path / "old", model, made, llm_config=text, system_message="Hello.")).spec
    assert (found.language, found.language.rope_theta) == (open_checkpoint(path).spec.language, 1e6)
    assert "system\\nHello.<|im_end|>" in found.chat_template


def test_both_layouts_of_conversations_are_known() -> None:
    assert {name: one.system for name, one in PROMPTS.items()} == SENTENCES | {"internlm2-chat": SENTENCES["Hermes-2"]}


@pytest.mark.parametrize(
    ("name", "placed"),
    [
        ("vision_model.encoder.layers.3.attn.qkv.bias", ("vision", "encoder.layer.3.attention.qkv.bias")),
        ("vision_model.encoder.layers.3.attn.proj.bias", ("vision", "encoder.layer.3.attention.projection_layer.bias")),
        ("vision_model.encoder.layers.3.ls2", ("vision", "encoder.layer.3.lambda_2")),
        ("vision_model.encoder.layers.3.norm1.bias", ("vision", "encoder.layer.3.layernorm_before.bias")),
        ("vision_model.encoder.layers.3.mlp.fc1.bias", ("vision", "encoder.layer.3.mlp.fc1.bias")),
        ("vision_model.embeddings.class_embedding", ("vision", "embeddings.cls_token")),
        ("mlp1.3.weight", ("projector", "3.weight")),
        ("language_model.model.norm.weight", ("language", "model.norm.weight")),
        ("language_model.lm_head.weight", ("language", "lm_head.weight")),
    ],
)  # fmt: skip
def test_names_are_placed(name: str, placed: tuple[str, str]) -> None:
    assert internvl_chat.place(name) == placed


def edit(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "config.json") -> None:
    config = json.loads((folder / name).read_text())
    change(config)
    (folder / name).write_text(json.dumps(config))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "6b": ({"vision_config": {"qk_normalization": True}}, "queries and keys that are normed .*InternViT of 6B"),
    "rms": ({"vision_config": {"norm_type": "rms_norm"}}, "RMSNorm .*InternViT of 6B"),
    "sparse": ({"vision_config": {"norm_type": None, "qk_normalization": None}}, "InternViT of 6B"),
    "phi3": ({"llm_config": {"architectures": ["Phi3ForCausalLM"]}}, "the language model 'Phi3ForCausalLM'"),
    "template": ({"template": "phi3-chat"}, "the template 'phi3-chat' is not known"),
    "v1": ({"ps_version": "v1"}, "ps_version is 'v1'"),
    "no-thumbnail": ({"use_thumbnail": False}, "use_thumbnail is False"),
    "pads": ({"pad2square": True}, "pad2square is True"),
    "least": ({"min_dynamic_patch": 2}, "min_dynamic_patch is 2"),
    "forced": ({"force_image_size": 56}, "force_image_size is 56, the tower's positions are of 28 pixels"),
    "unknown": ({"image_fold": 3}, "image_fold is 3, which is not known"),
    "sizes": ({"vision_config": {"num_hidden_layers": 5}}, "num_hidden_layers is 5, the tensors say 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_known_is_refused_by_name(name: str, saved: Saved, tmp_path: Path) -> None:
    changes, message = REFUSED[name]

    def change(config: dict[str, Any]) -> None:
        for key, value in changes.items():
            config[key] = config[key] | value if isinstance(value, dict) else value

    folder = shutil.copytree(saved["qwen2"][0], tmp_path / "model")
    edit(folder, change)
    with pytest.raises((Unsupported, CheckpointError), match=message) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.cure


def test_a_fused_tensor_that_is_no_three_of_a_kind(saved: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved["qwen2"][0], tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state["vision_model.encoder.layers.1.attn.qkv.weight"] = torch.zeros(191, 64)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layer\.1\.attention\.qkv\.weight has the shape \[191, 64\]"):
        open_checkpoint(folder)
