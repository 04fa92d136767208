"""LLaVA-1.5 as transformers saves it (``LlavaForConditionalGeneration``): a config inside the config for each part.

What such a config leaves out is a default of transformers' configuration classes.
"""

from __future__ import annotations

from typing import Any

from vlmexport.checkpoint.documents import section
from vlmexport.checkpoint.spec import ProjectorSpec, PromptSpec, Spec
from vlmexport.errors import Unsupported
from vlmexport.families.reading import language, nested, vision
from vlmexport.families.reading.defaults import filled, refuse_unread
from vlmexport.families.reading.published import Published, pad_id, stop_ids, stored_type, token_id

ARCHITECTURES = ("LlavaForConditionalGeneration",)
MODEL_TYPES = ("llava",)
SECTIONS = ("text_config",)
_READ = (
    "text_config", "vision_config", "image_token_id", "image_token_index", "image_seq_length", "projector_hidden_act",
    "vision_feature_select_strategy", "vision_feature_layer", "bos_token_id", "eos_token_id", "pad_token_id",
    "tie_word_embeddings",
)  # fmt: skip
_FEATURES = {"default": "patch", "full": "cls_patch"}


place = nested.place


def tower(config: dict[str, Any]) -> str | None:
    """It lies inside."""
    return None


def spec(published: Published) -> Spec:
    """``text_config`` and ``vision_config`` over their defaults.

    Raises:
        Unsupported: another language model or tower inside, or a projector that is not known.
    """
    config, file = filled(published.config, "llava"), published.file
    refuse_unread(published.config, "llava", _READ, str(file))
    text = filled(section(config, "text_config", file) or {}, "llama")
    given = filled(section(config, "vision_config", file) or {}, "clip_vision_model")
    if text["model_type"] != "llama":
        raise Unsupported(f"{file}: a {text['model_type']!r} language model is not known", "known: llama")
    if given["model_type"] != "clip_vision_model":
        raise Unsupported(f"{file}: a {given['model_type']!r} tower is not known", "known: clip_vision_model")
    refuse_unread(given, "clip_vision_model", vision.READ, f"{file}, vision_config")
    activation = config["projector_hidden_act"]
    if activation != "gelu":
        raise Unsupported(f"{file}: projector_hidden_act {activation!r} is not known", "known: gelu")
    strategy = str(config["vision_feature_select_strategy"])
    if strategy not in _FEATURES:
        raise Unsupported(f"{file}: vision_feature_select_strategy {strategy!r} is unknown", "known: default, full")
    given, said_in = published.of_tower(given)
    encoder = vision.layered_tower(
        "clip", given, published.shapes["vision"], said_in,
        select_layer=config["vision_feature_layer"], select_feature=_FEATURES[strategy],
    )  # fmt: skip
    text |= nested.outside(config)
    decoder = language.published(text, file)
    return Spec(
        name=published.name,
        layout="llava-hf",
        image_processor=published.image_processor(encoder.image_size),
        vision=encoder,
        projector=ProjectorSpec("mlp2x_gelu", encoder.hidden_size, decoder.hidden_size, encoder.num_patches),
        language=decoder,
        prompt=PromptSpec(),
        bos_token_id=token_id(text, "bos_token_id", 1, file),
        eos_token_id=token_id(text, "eos_token_id", 2, file),
        stop_token_ids=stop_ids(text, published),
        chat_template=published.chat_template,
        max_images=None,
        pad_token_id=pad_id(text),
        torch_dtype=stored_type(text),
        image_token_id=config.get("image_token_id", config["image_token_index"]),
    )
