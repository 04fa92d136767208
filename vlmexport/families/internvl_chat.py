"""InternVL in OpenGVLab's own layout (``InternVLChatModel``). Its code is never run: the same classes as transformers'
layout has are filled, whose names and numbers are mapped onto theirs."""

from __future__ import annotations

import re
from typing import Any

from vlmexport.checkpoint.documents import flag, section, whole
from vlmexport.checkpoint.spec import ImageProcessorSpec, PromptSpec, Spec, VisionSpec
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading import internvl, internvl_prompts, language
from vlmexport.families.reading.bundles import OWN, Clients, Mmproj
from vlmexport.families.reading.defaults import filled, refuse_unread
from vlmexport.families.reading.published import Published, pad_id, stop_ids, stored_type

ARCHITECTURES = ("InternVLChatModel",)
MODEL_TYPES = ("internvl_chat",)
SECTIONS: tuple[str, ...] = ()

_TOWER = (
    (r"^embeddings\.class_embedding$", "embeddings.cls_token"),
    (r"^embeddings\.position_embedding$", "embeddings.position_embeddings"),
    (r"^embeddings\.patch_embedding\.", "embeddings.patch_embeddings.projection."),
    (r"^encoder\.layers\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls(\d)$", r".lambda_\1"),
)
_PREFIXES = {"vision_model.": "vision", "mlp1.": "projector", "language_model.": "language"}
_FUSED = ".attention.qkv."

_READ = (
    "vision_config", "llm_config", "force_image_size", "downsample_ratio", "select_layer", "ps_version", "template",
    "system_message", "dynamic_image_size", "use_thumbnail", "min_dynamic_patch", "max_dynamic_patch", "pad2square",
    "hidden_size", "tie_word_embeddings", "use_backbone_lora", "use_llm_lora", "img_context_token_id",
    "attn_implementation",
)  # fmt: skip
"""Adapters of ``use_backbone_lora`` have tensors of their own, which are refused by name."""

_KNOWN = {"ps_version": "v2", "use_thumbnail": True, "pad2square": False, "min_dynamic_patch": 1}
"""What every published model of InternVL2 to 3.5 says; ``v1`` turns the map of features, the others change pixels."""

_NAMES = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm"}
_DEFAULTS: dict[str, Any] = {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False, "image_size": 224}
"""Of the tower's class, where they are not those of transformers'."""

_WITHOUT_EFFECT = (
    "model_type", "architectures", "capacity_factor", "eval_capacity_factor", "laux_allreduce", "moe_coeff_ratio",
    "moe_intermediate_size", "moe_output_scale", "noisy_gate_policy", "num_experts", "num_routed_experts",
    "num_shared_experts", "shared_expert_intermediate_size", "use_moe", "use_residual", "use_rts",
    "use_weighted_residual", "use_flash_attn", "use_bfloat16", "drop_path_rate", "dropout", "initializer_factor",
    "moe_config", "attn_implementation",
)  # fmt: skip
"""Of experts that neither the tower nor the language models have, and of how they are run."""

_LANGUAGES = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3", "LlamaForCausalLM": "llama"}
_CURE = "use the files that were published together"


def place(name: str) -> tuple[str, str]:
    """As ``InternVLChatModel`` saves it; query, key and value of the tower are one tensor, which ``arranged`` cuts."""
    for prefix, component in _PREFIXES.items():
        if name.startswith(prefix):
            inner = name.removeprefix(prefix)
            for pattern, canonical in _TOWER if component == "vision" else ():
                inner = re.sub(pattern, canonical, inner)
            return component, inner
    return "language", name


def arranged(tensors: dict[str, dict[str, LazyTensor]]) -> dict[str, dict[str, LazyTensor]]:
    """Query, key and value apart.

    Raises:
        CheckpointError: a fused tensor that is no three of a kind.
    """
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors["vision"].items():
        if _FUSED not in name:
            found[name] = tensor
            continue
        each, rest = divmod(tensor.shape[0], 3) if tensor.shape else (0, 1)
        if rest:
            raise CheckpointError(f"{name} has the shape {list(tensor.shape)}, which is no three of a kind", _CURE)
        for number, part in enumerate("qkv"):
            named = name.replace(_FUSED, f".attention.{part}_proj.")
            found[named] = tensor.rows(number * each, (number + 1) * each)
    return tensors | {"vision": found}


def tower(config: dict[str, Any]) -> str | None:
    """It lies inside."""
    return None


def clients(spec: Spec) -> Clients:
    """The checkpoint's own documents, and an image processor that transformers has: the published one is CLIP's, which
    sees one square of a picture."""
    pixels = spec.image_processor
    told = {
        "image_processor_type": "GotOcr2ImageProcessor", "size": {"height": pixels.side, "width": pixels.side},
        "crop_to_patches": True, "min_patches": pixels.min_patches, "max_patches": pixels.max_patches,
        "resample": pixels.resample, "do_resize": True, "do_rescale": True, "rescale_factor": pixels.rescale_factor,
        "do_normalize": True, "image_mean": list(pixels.image_mean), "image_std": list(pixels.image_std),
    }  # fmt: skip
    made = {
        "preprocessor_config.json": told | {"processor_class": "InternVLProcessor"},
        "processor_config.json": {
            "image_processor": told, "image_seq_length": (spec.vision.grid // 2) ** 2,
            "processor_class": "InternVLProcessor",
        },
    }  # fmt: skip
    copied = tuple(name for name in OWN if name not in made)
    template = {"tokenizer_config.json": {"chat_template": spec.template}}
    return Clients(copied, made, template, genai=None)


def gguf(spec: Spec) -> Mmproj:
    """As both layouts are written."""
    return internvl.gguf(spec)


def spec(published: Published) -> Spec:
    """``vision_config`` and ``llm_config`` in the terms of transformers' classes.

    Raises:
        CheckpointError: something is missing or garbled, or documents and tensors differ.
        Unsupported: another language model, the tower of 6B, or something else that is not known.
    """
    config, file = published.config, published.file
    refuse_unread(config, "", _READ, str(file))
    for key, known in _KNOWN.items():
        if config.get(key, known) != known:
            raise Unsupported(f"{file}: {key} is {config[key]!r}, which is not known", f"known: {known!r}")
    own = section(config, "llm_config", file) or {}
    kind = _language(own, str(file))
    text = filled(own, kind) | {"tie_word_embeddings": own.get("tie_word_embeddings", False)}
    encoder = _tower(published)
    decoder = language.published(text, file, kind, _WITHOUT_EFFECT)
    prompts = internvl_prompts.find(config.get("template"), file)
    end = published.added_token(prompts.end.strip())
    stops = (end,) if end is not None else stop_ids(text, published, None)
    return Spec(
        name=published.name,
        layout="internvl-chat",
        image_processor=_image_processor(config, encoder.image_size, str(file)),
        vision=encoder,
        projector=internvl.projector(encoder, decoder.hidden_size, config.get("downsample_ratio", 0.5), file),
        language=decoder,
        prompt=PromptSpec(),
        bos_token_id=None,
        eos_token_id=stops[0],
        stop_token_ids=stops,
        chat_template=prompts.template(config.get("system_message")),
        max_images=None,
        image_text=internvl.IMAGE_TEXT,
        pad_token_id=pad_id(text),
        torch_dtype=stored_type(config),
        image_token_id=published.added_token(internvl.IMAGE_TEXT.token),
    )


def _language(own: dict[str, Any], where: str) -> str:
    named = own.get("architectures") or [None]
    if named[0] not in _LANGUAGES:
        raise Unsupported(f"{where}: the language model {named[0]!r} is not known", f"known: {', '.join(_LANGUAGES)}")
    return _LANGUAGES[named[0]]


def _tower(published: Published) -> VisionSpec:
    """In the terms of ``InternVLVisionConfig``."""
    config, file = published.config, published.file
    own = section(config, "vision_config", file) or {}
    told = {key: value for key, value in own.items() if value is not None and key not in _WITHOUT_EFFECT}
    given = filled({_NAMES.get(key, key): value for key, value in (_DEFAULTS | told).items()}, "internvl_vision")
    encoder = internvl.tower(given, published.shapes["vision"], file, config.get("select_layer", -1))
    forced = config.get("force_image_size") or encoder.image_size
    if forced != encoder.image_size:
        raise Unsupported(
            f"{file}: force_image_size is {forced}, the tower's positions are of {encoder.image_size} pixels",
            "known: the same size",
        )
    return encoder


def _image_processor(config: dict[str, Any], side: int, where: str) -> ImageProcessorSpec:
    """As the code of its README cuts pictures; ``preprocessor_config.json`` is not read there either."""
    try:
        most = whole(config, "max_dynamic_patch", 12) if flag(config, "dynamic_image_size") else 1
    except TypeError as error:
        raise CheckpointError(f"{where} garbles {error}", _CURE) from error
    if most < 1:
        raise CheckpointError(f"{where}: max_dynamic_patch is {most}", _CURE)
    mean, std = internvl.COLOURS
    return ImageProcessorSpec.canvas(side, 1, most, image_mean=mean, image_std=std)
