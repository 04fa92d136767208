"""The configuration files of an ONNX bundle, as transformers.js, transformers and onnxruntime-genai read them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

from vlmexport.artifact.bundle.halves import Role
from vlmexport.artifact.onnx import tokenizer_file
from vlmexport.artifact.onnx.names import external_data, graph_path, precision_of
from vlmexport.checkpoint.spec import Spec, VisionSpec
from vlmexport.errors import Unsupported
from vlmexport.families import design
from vlmexport.model import plugins
from vlmexport.processing.sentencepiece_tokenizer import SentencePieceTokenizer
from vlmexport.recipe import Onnx
from vlmexport.source.checkpoint import Checkpoint

_LANCZOS = 1
"""PIL's number. transformers.js under Node resizes without antialiasing at 3; at 1 it comes near PIL's bicubic."""

_MAX_NEW_TOKENS = 256
_PREPROCESSOR = "preprocessor_config.json"
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


def documents(checkpoint: Checkpoint, settings: Onnx, written: Iterable[str]) -> dict[str, str]:
    """File name → content, for a bundle of graphs alone.

    Args:
        written: paths of its files with weights.

    Raises:
        Unsupported: the clients' files cannot hold the model.
    """
    return {name: _text(document) for name, document in files(Layout.of(checkpoint, settings, written)).items()}


def of_pictures(checkpoint: Checkpoint) -> dict[str, str]:
    """The same where another engine decodes: what makes pixels."""
    return {_PREPROCESSOR: _text(preprocessor(checkpoint.spec))}


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


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


def files(layout: Layout) -> dict[str, dict[str, Any]]:
    """File name → JSON document. Transformers.js and onnxruntime-genai generate text: a classifier goes without what is
    theirs alone."""
    found = {
        _PREPROCESSOR: preprocessor(layout.spec),
        "processor_config.json": processor(layout),
        "tokenizer_config.json": tokenizer(layout),
    }
    if not layout.spec.language.generates:
        return found | {"config.json": classifier(layout)}
    return found | {
        "config.json": config(layout),
        "generation_config.json": generation(layout),
        "genai_config.json": genai(layout),
    }


def classifier(layout: Layout) -> dict[str, Any]:
    """The design with its classes, under a type that no client takes for one of its own."""
    classes = layout.spec.language.classes
    return design.config(layout.spec) | {
        "image_token_index": layout.image_token,
        "image_seq_length": layout.image_tokens,
        "id2label": {str(number): text for number, text in enumerate(classes)},
    }


def config(layout: Layout) -> dict[str, Any]:
    """A LLaVA; the decoder's sizes, and which precision transformers.js takes of each graph."""
    spec, language, vision = layout.spec, layout.spec.language, layout.spec.vision
    precisions = {graph: precision_of(graph, layout.settings) for graph in _CLIENT_GRAPHS}
    client: dict[str, Any] = {"dtype": {graph: _TYPES.get(name, name) for graph, name in precisions.items()}}
    if layout.external:
        client["use_external_data_format"] = layout.external
    return {
        "architectures": [getattr(plugins.language(language), "CLIENT_CLASS", "LlavaForConditionalGeneration")],
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
        "transformers.js_config": client,
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
        "bos_token_id": spec.bos_token_id, "eos_token_id": _ends(spec),
        "pad_token_id": _pad(spec),
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
    if not pixels.do_pad:
        crop = {"do_center_crop": True, "crop_size": _square(side), "size": {"shortest_edge": side}}
        return common | crop | {"image_processor_type": "CLIPImageProcessor"}
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
            "size": _square(pixels.side) if pixels.do_pad else {"shortest_edge": pixels.side},
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


def genai(layout: Layout) -> dict[str, Any]:
    """onnxruntime-genai, which knows this chain of graphs under the name of Phi-3 vision."""
    spec, language = layout.spec, layout.spec.language
    options = {"session_options": {"log_id": "onnxruntime-genai", "provider_options": []}}
    decoder_in = {
        "inputs_embeds": "inputs_embeds", "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value",
    }  # fmt: skip
    if not layout.settings.fused_decoder:
        decoder_in["position_ids"] = "position_ids"
    decoder_out = {
        "logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"
    }  # fmt: skip
    return {
        "model": {
            "type": "phi3v",
            # genai takes no null here.
            **({} if spec.bos_token_id is None else {"bos_token_id": spec.bos_token_id}),
            "eos_token_id": _ends(spec),
            "pad_token_id": _pad(spec),
            "context_length": language.max_positions,
            "vocab_size": language.vocab_size,
            "vision": {
                "filename": graph_path("vision_encoder", layout.settings.vision),
                "inputs": {"pixel_values": "pixel_values"}, "outputs": {"image_features": "image_features"}, **options,
            },
            "embedding": {
                "filename": "embedding.onnx",
                "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
                "outputs": {"inputs_embeds": "inputs_embeds"}, **options,
            },
            "decoder": {
                "filename": graph_path("decoder", layout.settings.decoder),
                "head_size": language.head_dim, "hidden_size": language.hidden_size,
                "num_attention_heads": language.num_heads, "num_key_value_heads": language.num_kv_heads,
                "num_hidden_layers": language.num_layers, "inputs": decoder_in, "outputs": decoder_out, **options,
            },
        },
        "search": {
            "do_sample": False, "max_length": language.max_positions, "min_length": 0, "num_beams": 1, "top_k": 1,
            "past_present_share_buffer": False, "repetition_penalty": 1.0, "temperature": 1.0,
        },
    }  # fmt: skip


def _ends(spec: Spec) -> int | list[int]:
    """One token that ends an answer as a number, several as a list."""
    return list(spec.stop_token_ids) if len(spec.stop_token_ids) > 1 else spec.eos_token_id


def _pad(spec: Spec) -> int:
    return spec.pad_token_id if spec.pad_token_id is not None else spec.eos_token_id


def _square(side: int) -> dict[str, int]:
    return {"width": side, "height": side}
