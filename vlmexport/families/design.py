"""What ``vlmexport new`` writes: any vision encoder, projector and language model (docs/designs.md has the schema).

Tensors lie under ``vision.``, ``projector.`` and ``language.`` with their canonical names.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from vlmexport.checkpoint.documents import section
from vlmexport.checkpoint.spec import (
    Colour,
    ImageProcessorSpec,
    LanguageSpec,
    ProjectorSpec,
    PromptSpec,
    Spec,
    VisionSpec,
)
from vlmexport.errors import CheckpointError
from vlmexport.families.reading.bundles import Clients
from vlmexport.families.reading.language import language as read_language
from vlmexport.families.reading.published import Published, pad_id, stop_ids, stored_type, token_id

ARCHITECTURES: tuple[str, ...] = ()
MODEL_TYPES = ("vlmexport",)
SECTIONS: tuple[str, ...] = ()
_CURE = "write it again with `vlmexport new`, or see docs/designs.md"
_PIXELS = {"image_mean": Colour, "image_std": Colour, "aspect_ratio": str, "do_normalize": bool}
"""What ``vision_config`` says of the image processor."""


def place(name: str) -> tuple[str, str]:
    """The component stands before the first dot."""
    component, _, canonical = name.partition(".")
    if component in ("vision", "projector", "language"):
        return component, canonical
    raise CheckpointError(f"the tensor {name} belongs to no component", _CURE)


def tower(config: dict[str, Any]) -> str | None:
    """It lies inside."""
    return None


def spec(published: Published) -> Spec:
    """``text_config`` in the terms of ``LlamaConfig``, whatever its ``model_type``, ``vision_config`` in those of
    ``VisionSpec`` and ``ImageProcessorSpec``.

    Raises:
        CheckpointError: one of them is missing or garbled.
        Unsupported: rotary embeddings that are scaled otherwise than known.
    """
    config, file = published.config, published.file
    text, vision = section(config, "text_config", file), section(config, "vision_config", file)
    if text is None or vision is None or not isinstance(config.get("projector"), str):
        raise CheckpointError(f"{file} lacks vision_config, projector or text_config", _CURE)
    encoder, pixels = _seeing(vision, file)
    language = read_language(text, file, str(text.get("model_type", "llama")))
    return Spec(
        name=published.name,
        layout="design",
        image_processor=pixels,
        vision=encoder,
        projector=ProjectorSpec(config["projector"], encoder.hidden_size, language.hidden_size, encoder.num_patches),
        language=language,
        prompt=PromptSpec(),
        bos_token_id=None if text.get("bos_token_id", 1) is None else token_id(text, "bos_token_id", 1, file),
        eos_token_id=token_id(text, "eos_token_id", 2, file),
        stop_token_ids=stop_ids(text, published),
        pad_token_id=pad_id(text),
        torch_dtype=stored_type(text),
        chat_template=_template(config, file),
    )


def _template(config: dict[str, Any], path: Path) -> str:
    """The language model's own chat template; empty where it has none. What the tokenizer's files say is not read:
    the layout that it was taken from may not read it either."""
    found = config.get("chat_template", "")
    if not isinstance(found, str):
        raise CheckpointError(f"{path}: chat_template is no text", _CURE)
    return found


def clients(spec: Spec) -> Clients:
    """Of a classifier the design itself, under a type that no client takes for one of its own."""
    return Clients() if spec.language.generates else Clients(made={"config.json": config(spec)})


def _seeing(vision: dict[str, Any], path: Path) -> tuple[VisionSpec, ImageProcessorSpec]:
    """Of ``vision_config``: the encoder, and how its pixels are made."""
    known = {key: kind for key, kind in get_type_hints(VisionSpec).items() if key != "section"} | _PIXELS
    unknown = sorted(set(vision) - set(known))
    if unknown:
        raise CheckpointError(f"{path}: vision_config.{unknown[0]} is unknown", f"known: {', '.join(known)}")
    try:
        values = {key: _typed(known[key], value) for key, value in vision.items()}
        pixels = {key: values.pop(key) for key in _PIXELS if key in values}
        spec = VisionSpec(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: vision_config is garbled ({error})", _CURE) from error
    sizes = (spec.image_size, spec.patch_size, spec.hidden_size)
    if min(sizes) < 1 or spec.grid < 1 or not 0 <= spec.used_layers <= spec.num_layers:
        raise CheckpointError(f"{path}: vision_config has sizes that cannot be", _CURE)
    pads = pixels.pop("aspect_ratio", "pad") == "pad"
    return spec, ImageProcessorSpec.square(spec.image_size, pads, **pixels)


def _typed(kind: Any, value: Any) -> Any:
    """A value of a JSON document as the type of a field."""
    if get_origin(kind) is tuple:
        red, green, blue = (float(part) for part in value)
        return red, green, blue
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def config(spec: Spec) -> dict[str, Any]:
    """``config.json`` of a Spec, as ``spec`` reads it."""
    return {
        "model_type": MODEL_TYPES[0],
        "vision_config": _vision(spec.vision, spec.image_processor),
        "projector": spec.projector.kind,
        "text_config": _text(spec.language) | {
            "bos_token_id": spec.bos_token_id, "eos_token_id": _eos(spec), "pad_token_id": spec.pad_token_id,
            "torch_dtype": spec.torch_dtype,
        },
        **({"chat_template": spec.chat_template} if spec.chat_template else {}),
    }  # fmt: skip


def _vision(vision: VisionSpec, pixels: ImageProcessorSpec) -> dict[str, Any]:
    """Encoder and image processor in one."""
    found: dict[str, Any] = {} if pixels.do_normalize else {"do_normalize": False}
    for key, value in asdict(vision).items():
        if key == "section":
            continue
        if key == "select_layer":
            found |= {"image_mean": list(pixels.image_mean), "image_std": list(pixels.image_std)}
        if key == "variant":
            found["aspect_ratio"] = "pad" if pixels.do_pad else "crop"
        found[key] = value
    return found


def _eos(spec: Spec) -> int | list[int]:
    return spec.eos_token_id if len(spec.stop_token_ids) == 1 else list(spec.stop_token_ids)


def _text(language: LanguageSpec) -> dict[str, Any]:
    scaling = {"rope_scaling": language.rope_scaling.facts()} if language.rope_scaling else {}
    classes = {"classes": list(language.classes)} if language.classes else {}
    return scaling | classes | {
        "model_type": language.kind, "vocab_size": language.vocab_size, "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size, "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_heads, "num_key_value_heads": language.num_kv_heads,
        "head_dim": language.head_dim, "hidden_act": language.hidden_act, "rms_norm_eps": language.rms_norm_eps,
        "rope_theta": language.rope_theta, "max_position_embeddings": language.max_positions,
        "tie_word_embeddings": language.tie_word_embeddings,
    }  # fmt: skip
