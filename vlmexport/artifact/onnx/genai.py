"""``genai_config.json``, as onnxruntime-genai reads it."""

from __future__ import annotations

from typing import Any

from vlmexport import families
from vlmexport.artifact.onnx.client_files import Layout, ends, pad
from vlmexport.artifact.onnx.names import graph_path
from vlmexport.source.checkpoint import Checkpoint


def runs(checkpoint: Checkpoint) -> bool:
    """Whether it knows such a chain of graphs."""
    clients = families.clients(checkpoint.family, checkpoint.spec)
    return checkpoint.spec.language.generates and clients.genai is not None


def genai(layout: Layout, kind: str) -> dict[str, Any]:
    """Of a chain of graphs that it knows by the name of a ``kind``: LLaVA's by Phi-3 vision's, ``phi3v``."""
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
            "type": kind,
            # genai takes no null here.
            **({} if spec.bos_token_id is None else {"bos_token_id": spec.bos_token_id}),
            "eos_token_id": ends(spec),
            "pad_token_id": pad(spec),
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
