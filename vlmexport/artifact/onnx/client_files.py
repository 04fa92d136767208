"""The documents of a LLaVA, as transformers.js and transformers read them: made for every model whose family does not
copy its own (``documents.py``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

from vlmexport.artifact.bundle.halves import Role
from vlmexport.artifact.onnx import tokenizer_file
from vlmexport.artifact.onnx.names import external_data, precision_of
from vlmexport.checkpoint.spec import Spec, VisionSpec
from vlmexport.errors import Unsupported
from vlmexport.model import plugins
from vlmexport.processing.sentencepiece_tokenizer import SentencePieceTokenizer
from vlmexport.recipe import Onnx
from vlmexport.source.checkpoint import Checkpoint

_LANCZOS = 1
"""PIL's number. transformers.js under Node resizes without antialiasing at 3; at 1 it comes near PIL's bicubic."""

_MAX_NEW_TOKENS = 256
_TYPES = {"int4": "q4"}
"""What transformers.js calls a precision, where it is another name."""
_CLIENT_GRAPHS: tuple[Role, ...] = ("vision_encoder", "embed_tokens", "decoder_model_merged")


@dataclass(frozen=True)
class Layout:
    """What the files need to know beside the Spec.

    ``external``: graph file → number of external data files.
    """

    spec: Spec
    image_token: int
    image_tokens: int
    special: dict[str, str]
    settings: Onnx = field(default_factory=Onnx)
    external: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint, settings: Onnx, written: Iterable[str]) -> Layout:
        """That of a bundle; ``written`` are its files with weights."""
        spec = checkpoint.spec
        image_token, tokens = tokenizer_file.image_token_id(checkpoint), plugins.num_tokens(spec.projector)
        return cls(spec, image_token, tokens, _special(checkpoint), settings, external_data(written))


def _special(checkpoint: Checkpoint) -> dict[str, str]:
    """Name in ``tokenizer_config.json`` → text of a token."""
    tokenizer, spec = checkpoint.tokenizer, checkpoint.spec
    texts = tokenizer.texts()
    ids: dict[str, int | None] = {"eos_token": spec.eos_token_id, "pad_token": spec.pad_token_id}
    if tokenizer.bos_token_id is not None:
        ids = {"bos_token": spec.bos_token_id, **ids}
    if isinstance(tokenizer, SentencePieceTokenizer):
        ids["unk_token"] = tokenizer.unknown_token_id
    found = {name: texts[i] for name, i in ids.items() if i in texts}
    return {"pad_token": found["eos_token"], **found}


def config(layout: Layout) -> dict[str, Any]:
    """A LLaVA; the decoder's sizes, and what is transformers.js' own."""
    spec, language, vision = layout.spec, layout.spec.language, layout.spec.vision
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": layout.image_token,
        "image_seq_length": layout.image_tokens,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": vision.select_layer,
        "vision_feature_select_strategy": "default" if vision.select_feature == "patch" else "full",
        "text_config": {
            "model_type": getattr(plugins.language(language), "CLIENT_TYPE", language.kind),
            "vocab_size": max(language.vocab_size, layout.image_token + 1),
            "hidden_size": language.hidden_size,
            "intermediate_size": language.intermediate_size,
            "num_hidden_layers": language.num_layers,
            "num_attention_heads": language.num_heads,
            "num_key_value_heads": language.num_kv_heads,
            "head_dim": language.head_dim,
            "rms_norm_eps": language.rms_norm_eps,
            "rope_theta": language.rope_theta,
            "max_position_embeddings": language.max_positions,
            "tie_word_embeddings": language.tie_word_embeddings,
            "bos_token_id": spec.bos_token_id,
            "eos_token_id": spec.eos_token_id,
        },
        "vision_config": _vision(vision),
        **transformers_js(layout),
    }


def transformers_js(layout: Layout) -> dict[str, Any]:
    """What its ``config.json`` says for transformers.js: the precision of each graph, and its external data."""
    precisions = {graph: precision_of(graph, layout.settings) for graph in _CLIENT_GRAPHS}
    client: dict[str, Any] = {"dtype": {graph: _TYPES.get(name, name) for graph, name in precisions.items()}}
    if layout.external:
        client["use_external_data_format"] = layout.external
    return {"transformers.js_config": client}


def classifier(layout: Layout, base: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` of one that chooses among answers: what its family says, and the answers."""
    return {
        **base,
        "image_token_index": layout.image_token,
        "image_seq_length": layout.image_tokens,
        "id2label": {str(number): text for number, text in enumerate(layout.spec.language.classes)},
    }


def _vision(vision: VisionSpec) -> dict[str, Any]:
    """Clients read the sizes of an image and of a patch. They refuse a type that they do not know, so an encoder that
    transformers has no class for (its file names none) goes by CLIP's, without sizes where it has no layers."""
    found: dict[str, Any] = {
        "model_type": getattr(plugins.vision(vision), "CLIENT_TYPE", "clip_vision_model"),
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_size": vision.hidden_size,
    }
    if not vision.num_layers:
        return found
    return found | {
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "hidden_act": vision.hidden_act,
    }


def generation(layout: Layout) -> dict[str, Any]:
    """Greedy, up to any token that ends an answer."""
    spec = layout.spec
    return {
        "bos_token_id": spec.bos_token_id, "eos_token_id": ends(spec),
        "pad_token_id": pad(spec),
        "do_sample": False, "max_new_tokens": _MAX_NEW_TOKENS,
    }  # fmt: skip


def preprocessor(spec: Spec) -> dict[str, Any]:
    """The image processor of transformers.js. One that pads does so after normalisation, hence its colour."""
    pixels = spec.image_processor
    side = pixels.side
    common = {
        "do_convert_rgb": True, "do_resize": True, "do_rescale": True, "do_normalize": pixels.do_normalize,
        "resample": _LANCZOS, "rescale_factor": pixels.rescale_factor, "image_mean": list(pixels.image_mean),
        "image_std": list(pixels.image_std), "processor_class": "LlavaProcessor",
    }  # fmt: skip
    if pixels.do_center_crop:
        crop = {"do_center_crop": True, "crop_size": _square(side), "size": {"shortest_edge": side}}
        return common | crop | {"image_processor_type": "CLIPImageProcessor"}
    if not pixels.do_pad:
        whole = {"do_center_crop": False, "size": _square(side)}
        return common | whole | {"image_processor_type": "CLIPImageProcessor"}
    colour = [
        255 * (value / 255 - mean) / std
        for value, mean, std in zip(pixels.background, pixels.mean, pixels.std, strict=True)
    ]
    return common | {
        "image_processor_type": "VLMImageProcessor", "image_size": side, "size": {"longest_edge": side},
        "do_center_crop": False, "do_pad": True, "pad_size": _square(side), "background_color": colour,
    }  # fmt: skip


def processor(layout: Layout) -> dict[str, Any]:
    """How far ``<image>`` expands; inside it the image processor of Python's transformers.

    Raises:
        Unsupported: a number of visual tokens that no patch size gives.
    """
    vision = layout.spec.vision
    side = isqrt(layout.image_tokens)
    patch = vision.image_size // side
    if vision.image_size // patch != side:
        raise Unsupported(
            f"{layout.image_tokens} visual tokens from {vision.image_size} pixels fit no patch size",
            "the clients of this layout cannot expand <image> to that: export to GGUF",
        )
    pixels = layout.spec.image_processor
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": patch,
        "num_additional_image_tokens": layout.image_tokens - side**2,
        "vision_feature_select_strategy": "full",
        "image_processor": {
            "image_processor_type": "LlavaImageProcessor", "do_pad": pixels.do_pad, "do_resize": True,
            "resample": pixels.resample,
            "size": {"shortest_edge": pixels.side} if pixels.do_center_crop else _square(pixels.side),
            "do_center_crop": pixels.do_center_crop, "crop_size": _square(pixels.side), "do_rescale": True,
            "rescale_factor": pixels.rescale_factor, "do_normalize": pixels.do_normalize,
            "image_mean": list(pixels.image_mean), "image_std": list(pixels.image_std), "do_convert_rgb": True,
        },
    }  # fmt: skip


def tokenizer(layout: Layout) -> dict[str, Any]:
    """Special tokens and the conversation template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": "bos_token" in layout.special,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": layout.spec.language.max_positions,
        "padding_side": "left",
        "chat_template": layout.spec.template,
        "extra_special_tokens": {"image_token": "<image>"},
        **layout.special,
    }


def ends(spec: Spec) -> int | list[int]:
    """One token that ends an answer as a number, several as a list."""
    return list(spec.stop_token_ids) if len(spec.stop_token_ids) > 1 else spec.eos_token_id


def pad(spec: Spec) -> int:
    return spec.pad_token_id if spec.pad_token_id is not None else spec.eos_token_id


def _square(side: int) -> dict[str, int]:
    return {"width": side, "height": side}
