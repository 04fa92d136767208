"""FastVLM as transformers saves it (``FastVlmForConditionalGeneration``): timm's FastViTHD, an MLP and Qwen2."""

from __future__ import annotations

from typing import Any

from vlmexport.checkpoint.documents import section
from vlmexport.checkpoint.spec import PromptSpec, Spec
from vlmexport.errors import Unsupported
from vlmexport.families.reading import fastvit, language, nested
from vlmexport.families.reading.bundles import Clients
from vlmexport.families.reading.chatml import CHATML
from vlmexport.families.reading.defaults import filled, refuse_unread
from vlmexport.families.reading.published import Published, pad_id, stop_ids, stored_type

ARCHITECTURES = ("FastVlmForConditionalGeneration",)
MODEL_TYPES = ("fast_vlm",)
SECTIONS: tuple[str, ...] = ()
_READ = (
    "text_config", "vision_config", "image_token_id", "image_token_index", "image_seq_length", "bos_token_id",
    "eos_token_id", "pad_token_id", "tie_word_embeddings",
)  # fmt: skip
_VISION_READ = (
    "architecture", "model_args", "hidden_size", "do_pooling", "global_pool", "num_classes", "label_names",
    "pretrained_cfg",
)  # fmt: skip

place = nested.place


def tower(config: dict[str, Any]) -> str | None:
    """It lies inside."""
    return None


def clients(spec: Spec) -> Clients:
    """LLaVA's, under the name that transformers.js has for it."""
    return fastvit.CLIENTS


def spec(published: Published) -> Spec:
    """``text_config`` and ``vision_config`` over their defaults; sizes of the tower are those of its tensors.

    Raises:
        Unsupported: another language model or tower inside, or a tower in the form for training.
    """
    config, file = filled(published.config, "fast_vlm"), published.file
    refuse_unread(published.config, "fast_vlm", _READ, str(file))
    text = filled(section(config, "text_config", file) or {}, "qwen2") | nested.outside(config)
    given = section(config, "vision_config", file) or {}
    if text["model_type"] != "qwen2":
        raise Unsupported(f"{file}: a {text['model_type']!r} language model is not known", "known: qwen2")
    _refuse_tower(given, f"{file}, vision_config")
    pixels = fastvit.image_processor(published, None, None)
    encoder = fastvit.tower(published, pixels.side, given.get("hidden_size"))
    decoder = language.published(text, file, "qwen2")
    stops = stop_ids(text, published, None)
    return Spec(
        name=published.name,
        layout="fast-vlm",
        image_processor=pixels,
        vision=encoder,
        projector=fastvit.projector(encoder, decoder, "mlp2x_gelu"),
        language=decoder,
        prompt=PromptSpec(),
        bos_token_id=None,
        eos_token_id=stops[0],
        stop_token_ids=stops,
        chat_template=published.chat_template or CHATML,
        max_images=None,
        pad_token_id=pad_id(text),
        torch_dtype=stored_type(text),
        image_token_id=config.get("image_token_id", config["image_token_index"]),
    )


def _refuse_tower(given: dict[str, Any], where: str) -> None:
    kind, name = given.get("model_type"), given.get("architecture")
    if kind != "timm_wrapper" or name != "fastvit_mci3":
        raise Unsupported(f"{where}: a {kind!r} tower, {name!r}, is not known", "known: timm_wrapper, fastvit_mci3")
    arguments = given.get("model_args") or {}
    if arguments.get("inference_mode") is not True:
        fastvit.refuse_branches(where)
    refuse_unread(given, "timm_wrapper", _VISION_READ, where)
    refuse_unread(arguments, "", ("inference_mode", "layers", "embed_dims"), f"{where}.model_args")
