"""What nanoVLM's config says of pictures and prompts, its tensors in canonical form, documents of its bundles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import flag, whole
from vlmexport.checkpoint.image_text import ImageText
from vlmexport.checkpoint.spec import ImageProcessorSpec, Size, Spec
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading.bundles import Clients

_BILINEAR, _BICUBIC = 2, 3
_TILE, _IMAGE = "<row_{row}_col_{column}>", "<image: {image}>"
_PLACES = "embeddings.position_embedding.weight"
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_CURE = "use the config.json that was saved with the weights"

_AS_TEXT = (
    "{%- set nano = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set one = namespace(images='', text='') -%}"
    "{%- if message['content'] is string -%}{%- set one.text = message['content'] -%}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set one.images = one.images + '<image>' -%}"
    "{%- else -%}{%- set one.text = one.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set nano.messages = nano.messages + "
    "[{'role': message['role'], 'images': one.images, 'text': one.text, 'content': one.images + one.text}] -%}"
    "{%- endfor -%}"
    "{%- set messages = nano.messages -%}"
)
"""Its own templates take a message as one text, before which the images of it stand."""

_ASKED = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- message['images'] + 'Question: ' + message['text'] + ' Answer:' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- message['text'] + eos_token -}}"
    "{%- else -%}{{- message['content'] + ' ' -}}{%- endif -%}"
    "{%- endfor -%}"
)
"""What the code of the first models writes around a question."""


def arranged(tensors: dict[str, dict[str, LazyTensor]]) -> dict[str, dict[str, LazyTensor]]:
    """Queries, keys and values are one matrix each way, positions have a batch axis, and a tied head may be all that is
    stored of the two.

    Raises:
        CheckpointError: a shape that cannot be.
    """
    vision: dict[str, LazyTensor] = {}
    for name, tensor in tensors["vision"].items():
        if ".qkv_proj." in name:
            third, rest = divmod(tensor.shape[0] if tensor.shape else 1, 3)
            if rest:
                raise CheckpointError(f"{tensor.name} has the shape {list(tensor.shape)}", "it is of another model")
            for place, part in enumerate(("q_proj", "k_proj", "v_proj")):
                vision[name.replace("qkv_proj", part)] = tensor.rows(place * third, (place + 1) * third)
        elif name == _PLACES and len(tensor.shape) == 3 and tensor.shape[0] == 1:
            vision[name] = tensor.reshaped(tensor.shape[1:])
        else:
            vision[name] = tensor
    language = dict(tensors["language"])
    if _TABLE not in language and _HEAD in language:
        language[_TABLE] = language.pop(_HEAD)
    return {**tensors, "vision": vision, "language": language}


def image_processor(config: dict[str, Any], side: int, extra: Mapping[str, Any], file: Path) -> ImageProcessorSpec:
    """One square of the whole picture, or a grid of squares. Nothing is taken off a pixel, which is from 0 to 1.

    Args:
        extra: ``vlm_extra_tokens``, which say whether the whole is a view beside its tiles.

    Raises:
        CheckpointError: a size is garbled.
        Unsupported: squares do not divide the largest picture, or one of them has no mark.
    """
    try:
        longest, enlarges = whole(config, "max_img_size", 0), flag(config, "resize_to_max_side_len")
    except TypeError as error:
        raise CheckpointError(f"{file} garbles {error}", _CURE) from error
    if not longest:
        square = ImageProcessorSpec.square(side, pads=True, resample=_BILINEAR, do_normalize=False)
        return replace(square, do_pad=False)
    if longest % side:
        raise Unsupported(f"{file}: max_img_size is {longest}, squares have {side} pixels", "known: multiples of them")
    for row in range(1, longest // side + 1):
        for column in range(1, longest // side + 1):
            mark = _TILE.replace("{row}", f"{row}").replace("{column}", f"{column}")
            if extra.get(f"r{row}c{column}") != mark:
                raise Unsupported(
                    f"{file}: vlm_extra_tokens calls r{row}c{column} {extra.get(f'r{row}c{column}')!r}",
                    f"known: {mark}, and so for all squares of a picture of {longest} pixels",
                )
    return ImageProcessorSpec(
        "grid", Size(longest_edge=longest), do_center_crop=False, do_pad=False, resample=_BICUBIC, do_normalize=False,
        max_image_size=Size(longest_edge=side), do_image_splitting=True, do_enlarge=enlarges,
        add_whole="global_image_token" in extra,
    )  # fmt: skip


def image_text(config: dict[str, Any], extra: Mapping[str, Any]) -> ImageText:
    """The marks of a grid; of one square there is none."""
    several = _IMAGE if config.get("max_img_size") else ""
    whole_picture = str(extra.get("global_image_token", ""))
    return ImageText(
        tile=_TILE, row_end="", whole=whole_picture, alone=whole_picture, end="", begin=several, whole_first=True
    )


def template(config: dict[str, Any], file: Path) -> str:
    """The config's own chat template; where it has none, what the code of that time writes.

    Raises:
        CheckpointError: it is no text.
    """
    own = config.get("lm_chat_template") or _ASKED
    if not isinstance(own, str):
        raise CheckpointError(f"{file}: lm_chat_template is no text", _CURE)
    return _AS_TEXT + own


def clients(spec: Spec) -> Clients:
    """Of one square those of a LLaVA. No client knows such a grid: its documents name a type that none takes for one of
    its own, and say for the runtime here how pictures are cut."""
    pixels = spec.image_processor
    if pixels.mode == "square":
        return Clients()
    assert pixels.size.longest_edge is not None
    cuts = {
        "image_processor_type": "NanoVLMImageProcessor", "size": {"longest_edge": pixels.size.longest_edge},
        "max_image_size": {"longest_edge": pixels.side}, "do_image_splitting": True, "do_enlarge": pixels.do_enlarge,
        "add_whole": pixels.add_whole, "resample": pixels.resample, "rescale_factor": pixels.rescale_factor,
        "do_normalize": False,
    }  # fmt: skip
    config = {"model_type": "nanovlm", "image_size": pixels.side, "hidden_size": spec.language.hidden_size}
    made = {"config.json": config, "preprocessor_config.json": cuts, "processor_config.json": {}}
    return Clients(made=made, genai=None)
