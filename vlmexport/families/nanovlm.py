"""nanoVLM's own layout: SigLIP, a pixel shuffle and SmolLM2 under names of its own, told by one flat config.

Its first models see a picture as one square, later ones as a grid of squares. The tokenizer is not in the folder: the
config names it, and the tokens that are added to it.
"""

from __future__ import annotations

import re
from typing import Any

from vlmexport.checkpoint.documents import section, whole
from vlmexport.checkpoint.spec import ProjectorSpec, PromptSpec, Spec, VisionSpec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading import language, nanovlm, vision
from vlmexport.families.reading.defaults import refuse_unread
from vlmexport.families.reading.published import Published, stop_ids

ARCHITECTURES: tuple[str, ...] = ()
MODEL_TYPES: tuple[str, ...] = ()
SECTIONS = ("vit_hidden_dim", "lm_hidden_dim", "mp_pixel_shuffle_factor")

_PLACES = (
    (r"vision_encoder\.patch_embedding\.conv\.(.+)", "vision", r"embeddings.patch_embedding.\1"),
    (r"vision_encoder\.patch_embedding\.position_embedding", "vision", "embeddings.position_embedding.weight"),
    (r"vision_encoder\.layer_norm\.(.+)", "vision", r"post_layernorm.\1"),
    (r"vision_encoder\.blocks\.(\d+)\.ln([12])\.(.+)", "vision", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"vision_encoder\.blocks\.(\d+)\.attn\.(.+)", "vision", r"encoder.layers.\1.self_attn.\2"),
    (r"vision_encoder\.blocks\.(.+)", "vision", r"encoder.layers.\1"),
    (r"MP\.(.+)", "projector", r"\1"),
    (r"decoder\.token_embedding\.(.+)", "language", r"model.embed_tokens.\1"),
    (r"decoder\.norm\.(.+)", "language", r"model.norm.\1"),
    (r"decoder\.head\.(.+)", "language", r"lm_head.\1"),
    (r"decoder\.blocks\.(\d+)\.norm1\.(.+)", "language", r"model.layers.\1.input_layernorm.\2"),
    (r"decoder\.blocks\.(\d+)\.norm2\.(.+)", "language", r"model.layers.\1.post_attention_layernorm.\2"),
    (r"decoder\.blocks\.(\d+)\.attn\.out_proj\.(.+)", "language", r"model.layers.\1.self_attn.o_proj.\2"),
    (r"decoder\.blocks\.(\d+)\.attn\.(.+)", "language", r"model.layers.\1.self_attn.\2"),
    (r"decoder\.blocks\.(.+)", "language", r"model.layers.\1"),
)  # fmt: skip
_UNUSED = "decoder.rotary_embd."
"""A buffer that follows from the config."""

_READ = (
    "vit_hidden_dim", "vit_inter_dim", "vit_patch_size", "vit_img_size", "vit_n_heads", "vit_n_blocks", "vit_ln_eps",
    "lm_hidden_dim", "lm_inter_dim", "lm_rms_eps", "lm_re_base", "lm_max_position_embeddings", "lm_vocab_size",
    "lm_n_heads", "lm_n_kv_heads", "lm_n_blocks", "lm_tie_weights", "lm_tokenizer", "lm_chat_template",
    "lm_eos_token_id", "lm_attn_scaling", "mp_pixel_shuffle_factor", "mp_image_token_length", "vlm_extra_tokens",
    "max_img_size", "resize_to_max_side_len",
)  # fmt: skip
_OF_TRAINING = (
    "vit_model_type", "vit_dropout", "lm_model_type", "lm_dropout", "lm_max_length", "lm_base_vocab_size",
    "extra_token_amount", "vlm_load_backbone_weights", "vlm_checkpoint_path", "hf_repo_name",
)  # fmt: skip
_CURE = "use the config.json that was saved with the weights"

arranged, clients = nanovlm.arranged, nanovlm.clients


def place(name: str) -> tuple[str, str] | None:
    """As ``VisionLanguageModel.save_pretrained`` writes them."""
    if name.startswith(_UNUSED):
        return None
    for pattern, component, canonical in _PLACES:
        if found := re.fullmatch(pattern, name):
            return component, found.expand(canonical)
    return "language", name


def tower(config: dict[str, Any]) -> str | None:
    """It lies inside."""
    return None


def tokenizer(config: dict[str, Any]) -> str | None:
    """``lm_tokenizer``, a folder or a Hub id."""
    named = config.get("lm_tokenizer")
    return named if isinstance(named, str) and named else None


def spec(published: Published) -> Spec:
    """The flat config of its ``VLMConfig``.

    Raises:
        CheckpointError: something is missing or garbled, or config and tensors differ.
        Unsupported: something that would change the result and is not known.
    """
    config, file = published.config, published.file
    refuse_unread(config, "nanovlm", (*_READ, *_OF_TRAINING), str(file))
    if config.get("lm_attn_scaling", 1.0) != 1:
        raise Unsupported(f"{file}: lm_attn_scaling is {config['lm_attn_scaling']}, which is not known", "known: 1.0")
    extra = section(config, "vlm_extra_tokens", file) or {}
    encoder, decoder = _tower(published), language.language(_text(published), file)
    try:
        factor, length = whole(config, "mp_pixel_shuffle_factor"), whole(config, "mp_image_token_length", 0)
    except TypeError as error:
        raise CheckpointError(f"{file} garbles {error}", _CURE) from error
    if not 1 <= factor <= encoder.grid:
        raise CheckpointError(f"{file}: mp_pixel_shuffle_factor is {factor}, a side has {encoder.grid} patches", _CURE)
    if length and length != (expected := (encoder.grid // factor) ** 2):
        raise CheckpointError(f"{file}: mp_image_token_length is {length}, a view has {expected} visual tokens", _CURE)
    stops = stop_ids({"eos_token_id": config.get("lm_eos_token_id")}, published, None)
    ends = published.eos_of_tokenizer or stops  # what is trained to end an answer
    image = str(extra.get("image_token", ""))
    return Spec(
        name=published.name,
        layout="nanovlm",
        image_processor=nanovlm.image_processor(config, encoder.image_size, extra, file),
        vision=encoder,
        projector=ProjectorSpec(
            f"shuffle{factor}_linear", encoder.hidden_size, decoder.hidden_size, encoder.num_patches
        ),
        language=decoder,
        prompt=PromptSpec(),
        bos_token_id=None,
        eos_token_id=ends[0],
        stop_token_ids=ends,
        chat_template=nanovlm.template(config, file),
        max_images=None if config.get("lm_chat_template") else 1,
        image_text=nanovlm.image_text(config, extra) if image else None,
        pad_token_id=ends[0],
        torch_dtype="float32",
        extra_tokens=tuple(map(str, extra.values())),
        image_token=image or Spec.image_token,
    )


def _tower(published: Published) -> VisionSpec:
    config, file = published.config, published.file
    names = {"hidden_size": "vit_hidden_dim", "intermediate_size": "vit_inter_dim", "patch_size": "vit_patch_size",
             "image_size": "vit_img_size", "num_attention_heads": "vit_n_heads", "num_hidden_layers": "vit_n_blocks",
             "layer_norm_eps": "vit_ln_eps"}  # fmt: skip
    given = {key: config[name] for key, name in names.items() if config.get(name) is not None}
    given = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6} | given
    return vision.layered_tower(
        "siglip_normed", given, published.shapes["vision"], file, select_layer=-1, select_feature="patch"
    )


def _text(published: Published) -> dict[str, Any]:
    """The language model in the terms of ``LlamaConfig``."""
    names = {"vocab_size": "lm_vocab_size", "hidden_size": "lm_hidden_dim", "intermediate_size": "lm_inter_dim",
             "num_hidden_layers": "lm_n_blocks", "num_attention_heads": "lm_n_heads",
             "num_key_value_heads": "lm_n_kv_heads", "rms_norm_eps": "lm_rms_eps", "rope_theta": "lm_re_base",
             "max_position_embeddings": "lm_max_position_embeddings", 
             "tie_word_embeddings": "lm_tie_weights"}  # fmt: skip
    return {key: published.config[name] for key, name in names.items() if published.config.get(name) is not None}
