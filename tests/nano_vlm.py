"""nanoVLM's own layout. transformers has no class of it: the oracle is made of its SigLIP, its Llama and a linear
layer, and of torchvision's resizing, as the repository (huggingface/nanoVLM) describes them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torchvision.transforms import functional as pictures
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.vocabularies import CHATML, byte_level
from vlmexport.processing.messages import Message, Picture

CHAT = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""``lm_chat_template`` of its published configs."""

IMAGE, GLOBAL = {"image_token": "<|image|>"}, {"global_image_token": "<|global_image|>"}


def marks(side: int) -> dict[str, str]:
    """Those of a grid of so many rows and columns."""
    places = range(1, side + 1)
    return {f"r{row}c{column}": f"<row_{row}_col_{column}>" for row in places for column in places}


_SIZES = {
    "vit_hidden_dim": 64, "vit_inter_dim": 96, "vit_patch_size": 8, "vit_img_size": 64, "vit_n_heads": 2,
    "vit_dropout": 0.0, "vit_n_blocks": 2, "vit_ln_eps": 1e-6, "vit_cls_flag": False,
    "vit_model_type": "google/siglip-base-patch16-224", "lm_hidden_dim": 256, "lm_inter_dim": 512, "lm_rms_eps": 1e-5,
    "lm_re_base": 100000, "lm_max_position_embeddings": 2048, "lm_n_heads": 4, "lm_n_kv_heads": 2, "lm_dropout": 0.0,
    "lm_n_blocks": 1, "lm_attn_scaling": 1.0, "lm_max_length": 79, "lm_use_tokens": False, "lm_tie_weights": True,
    "lm_model_type": "HuggingFaceTB/SmolLM2-135M", "lm_tokenizer": "words", "vlm_load_backbone_weights": True,
    "vlm_checkpoint_path": "checkpoints",
}  # fmt: skip
_GRID = {"lm_chat_template": CHAT, "mp_pixel_shuffle_factor": 4, "mp_image_token_length": 4, "max_img_size": 256,
         "hf_repo_name": "nanoVLM"}  # fmt: skip
GENERATIONS: dict[str, dict[str, Any]] = {
    "v0.1": _SIZES | {"mp_pixel_shuffle_factor": 2, "lm_eos_token_id": 0},
    "v0.2": _SIZES | {"mp_pixel_shuffle_factor": 2, "mp_image_token_length": 16, "vlm_extra_tokens": IMAGE},
    "tiles": _SIZES | _GRID | {"vlm_extra_tokens": IMAGE | marks(4)},
    "whole": _SIZES | _GRID | {"resize_to_max_side_len": False, "vlm_extra_tokens": IMAGE | GLOBAL | marks(4)},
    "enlarged": _SIZES | _GRID | {"resize_to_max_side_len": True, "vlm_extra_tokens": IMAGE | GLOBAL | marks(4)},
}
"""The 222M; the 450M; the 230M and 460M; those of its newest code by either way of resizing."""


@dataclass
class NanoVlm:
    """A model of a config, with random weights that matter, and what its code does with it."""

    config: dict[str, Any]
    vision: SiglipVisionModel
    projector: torch.nn.Linear
    language: LlamaForCausalLM
    words: PreTrainedTokenizerFast

    @property
    def tokens(self) -> int:
        """Visual tokens of a view."""
        config = self.config
        return int((config["vit_img_size"] // config["vit_patch_size"] // config["mp_pixel_shuffle_factor"]) ** 2)

    @property
    def image_token(self) -> int:
        """What stands for a visual token among ids; -1 of v0.1, whose tokenizer has none."""
        return int(self.words.convert_tokens_to_ids("<|image|>")) if "vlm_extra_tokens" in self.config else -1

    def pixels(self, image: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
        """f32 [views, 3, side, side], and rows and columns of its squares."""
        side, longest = self.config["vit_img_size"], self.config.get("max_img_size")
        if longest is None:
            return pictures.to_tensor(pictures.resize(image, [side, side]))[None], (1, 1)
        edge, other = max(image.size), min(image.size)
        nearest = math.ceil(edge / side) * side
        long = longest if self.config.get("resize_to_max_side_len") else min(longest, nearest)
        short = max(math.ceil(other * (long / edge) / side) * side, side)
        height, width = (short, long) if image.width >= image.height else (long, short)
        found = pictures.resize(image, [height, width], interpolation=pictures.InterpolationMode.BICUBIC)
        whole = pictures.to_tensor(found)
        rows = [row.split(side, dim=2) for row in whole.split(side, dim=1)]
        views = [square for row in rows for square in row]
        if len(views) > 1 and "global_image_token" in self.config["vlm_extra_tokens"]:
            views.insert(0, pictures.resize(whole, [side, side]))
        return torch.stack(views), (height // side, width // side)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """f32 [views, patches, width], through the last norm."""
        return self.vision(pixels).last_hidden_state  # type: ignore[no-any-return]

    def visual(self, features: torch.Tensor) -> torch.Tensor:
        """f32 [visual tokens, hidden]: squares of features side by side, rows of a square first."""
        side, factor = math.isqrt(features.shape[1]), self.config["mp_pixel_shuffle_factor"]
        maps = features.transpose(1, 2).unflatten(2, (side, side))
        cut = maps.unfold(2, factor, factor).unfold(3, factor, factor)  # views, width, rows, columns, factor, factor
        tokens: torch.Tensor = self.projector(cut.permute(0, 2, 3, 4, 5, 1).flatten(3))
        return tokens.flatten(0, 2)

    def image_string(self, grids: Sequence[tuple[int, int]]) -> str:
        """What stands for images in a text."""
        extra, text = self.config["vlm_extra_tokens"], ""
        view = extra["image_token"] * self.tokens
        for number, (rows, columns) in enumerate(grids):
            text += f"<image: {number}>" if len(grids) > 1 else ""
            if "max_img_size" not in self.config:
                text += view
                continue
            if "global_image_token" in extra:
                text += extra["global_image_token"] + view
                if (rows, columns) == (1, 1):
                    continue
            for row in range(rows):
                for column in range(columns):
                    text += extra[f"r{row + 1}c{column + 1}"] + view
        return text

    def ids(self, messages: Sequence[Message], grids: Sequence[tuple[int, int]]) -> list[int]:
        """Of a conversation; −1 for each visual token of v0.1, whose text has none."""
        left, said = list(grids), []
        for message in messages:
            shown = sum(part is Picture.NEXT for part in message.content)
            if "vlm_extra_tokens" in self.config and shown:
                said.append({"role": message.role, "content": self.image_string(left[:shown]) + message.text})
            else:
                said.append({"role": message.role, "content": message.text})
            left = left[shown:]
        if "lm_chat_template" in self.config:
            text = self.words.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
            return list(self.words(text).input_ids)
        (asked,) = said
        image = self.image_string(grids) if "vlm_extra_tokens" in self.config else ""
        before = [] if image else [-1] * self.tokens * len(grids)
        question = asked["content"].removeprefix(image)
        return before + list(self.words(f"{image}Question: {question} Answer:").input_ids)

    def logits(self, ids: Sequence[int], visual: torch.Tensor) -> torch.Tensor:
        """f32 [1, ids, vocabulary]."""
        return self.language(inputs_embeds=self._embeds(ids, visual)).logits  # type: ignore[no-any-return]

    def answer(self, ids: Sequence[int], visual: torch.Tensor, count: int) -> list[int]:
        """Greedy ids."""
        found = self.language.generate(  # type: ignore[operator]
            inputs_embeds=self._embeds(ids, visual), max_new_tokens=count, do_sample=False,
            eos_token_id=self.words.eos_token_id, pad_token_id=self.words.eos_token_id,
        )  # fmt: skip
        return list(found[0].tolist())

    def _embeds(self, ids: Sequence[int], visual: torch.Tensor) -> torch.Tensor:
        places = torch.tensor([i == self.image_token for i in ids])
        embeds = self.language.get_input_embeddings()(torch.tensor([max(i, 0) for i in ids]))
        embeds[places] = visual
        return embeds[None]  # type: ignore[no-any-return]


def new(generation: str, folder: Path, real: Tokenizer | None = None, **others: Any) -> NanoVlm:
    """A model, and its tokenizer in the folder that its config names.

    Args:
        folder: the checkpoint's, which need not be there.
        real: a tokenizer in place of a tiny one.
        others: of the config.
    """
    config = GENERATIONS[generation] | others
    base = PreTrainedTokenizerFast(
        tokenizer_object=real or byte_level("smollm", special=CHATML), bos_token="<|im_start|>",
        eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>", clean_up_tokenization_spaces=False,
    )  # fmt: skip
    base.save_pretrained(folder / config["lm_tokenizer"])
    extra = {key: config[name] for key, name in (("extra_special_tokens", "vlm_extra_tokens"),
                                                 ("chat_template", "lm_chat_template")) if name in config}  # fmt: skip
    words = AutoTokenizer.from_pretrained(folder / config["lm_tokenizer"], **extra)
    added = len(config.get("vlm_extra_tokens", ()))
    config |= {"lm_base_vocab_size": len(base), "extra_token_amount": added} if added else {}
    config["lm_vocab_size"] = len(base) + added
    torch.manual_seed(0)
    vision, projector, language = modules(config)
    with torch.no_grad():
        for name, value in [*vision.named_parameters(), *language.named_parameters()]:
            if "norm" in name or name.endswith("bias"):
                value.add_(torch.randn_like(value) * 0.1)
            elif value.shape[0] != config["lm_vocab_size"]:
                value.normal_(std=0.1)
    return NanoVlm(config, vision.eval(), projector, language.eval(), words)


def modules(config: dict[str, Any]) -> tuple[SiglipVisionModel, torch.nn.Linear, LlamaForCausalLM]:
    """Tower, projector and language model of a config, as they are initialised."""
    vision = SiglipVisionModel(SiglipVisionConfig(
        hidden_size=config["vit_hidden_dim"], intermediate_size=config["vit_inter_dim"], vision_use_head=False,
        num_hidden_layers=config["vit_n_blocks"], num_attention_heads=config["vit_n_heads"],
        image_size=config["vit_img_size"], patch_size=config["vit_patch_size"], layer_norm_eps=config["vit_ln_eps"],
    ))  # fmt: skip
    language = LlamaForCausalLM(LlamaConfig(
        vocab_size=config["lm_vocab_size"], hidden_size=config["lm_hidden_dim"],
        intermediate_size=config["lm_inter_dim"], num_hidden_layers=config["lm_n_blocks"],
        num_attention_heads=config["lm_n_heads"], num_key_value_heads=config["lm_n_kv_heads"],
        rms_norm_eps=config["lm_rms_eps"], max_position_embeddings=config["lm_max_position_embeddings"],
        rope_parameters={"rope_type": "default", "rope_theta": float(config["lm_re_base"])},
        tie_word_embeddings=config["lm_tie_weights"], initializer_range=1 / 16,
    ))  # fmt: skip
    factor = config["mp_pixel_shuffle_factor"]
    projector = torch.nn.Linear(factor**2 * config["vit_hidden_dim"], config["lm_hidden_dim"], bias=False)
    return vision, projector, language


_VISION = (
    ("embeddings.patch_embedding", "patch_embedding.conv"), ("encoder.layers", "blocks"), ("layer_norm", "ln"),
    ("self_attn", "attn"), ("post_layernorm", "layer_norm"),
)  # fmt: skip
_LANGUAGE = (
    ("model.embed_tokens", "token_embedding"), ("model.layers", "blocks"), ("self_attn.o_proj", "attn.out_proj"),
    ("self_attn", "attn"), ("input_layernorm", "norm1"), ("post_attention_layernorm", "norm2"), ("model.norm", "norm"),
    ("lm_head", "head"),
)  # fmt: skip


def state(
    config: dict[str, Any], vision: SiglipVisionModel, projector: torch.nn.Linear, language: LlamaForCausalLM
) -> dict[str, torch.Tensor]:
    """Its tensors as its code stores them: a tied head is stored under one name."""
    found: dict[str, torch.Tensor] = {"MP.proj.weight": projector.weight}
    towers = {name.removeprefix("vision_model."): value for name, value in vision.state_dict().items()}
    found["vision_encoder.patch_embedding.position_embedding"] = towers.pop(
        "embeddings.position_embedding.weight"
    ).unsqueeze(0)
    for name, value in towers.items():
        if ".q_proj." in name:
            value = torch.cat([towers[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
        if ".k_proj." not in name and ".v_proj." not in name:
            found["vision_encoder." + _renamed(name.replace(".q_proj.", ".qkv_proj."), _VISION)] = value
    for name, value in language.state_dict().items():
        found["decoder." + _renamed(name, _LANGUAGE)] = value
    if config["lm_tie_weights"]:
        del found["decoder.token_embedding.weight"]
    found["decoder.rotary_embd.inv_freq"] = language.model.rotary_emb.inv_freq
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def _renamed(name: str, names: Sequence[tuple[str, str]]) -> str:
    for theirs, ours in names:
        name = name.replace(theirs, ours)
    return name


def write(folder: Path, generation: str, **others: Any) -> NanoVlm:
    """``config.json`` and ``model.safetensors``, which is all that its ``save_pretrained`` writes, and the tokenizer
    that its config names."""
    folder.mkdir(parents=True, exist_ok=True)
    model = new(generation, folder, **others)
    (folder / "config.json").write_text(json.dumps(model.config, indent=4))
    save_file(state(model.config, model.vision, model.projector, model.language), folder / "model.safetensors")
    return model
