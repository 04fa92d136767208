"""What the layouts of Idefics3 and SmolVLM share: names of tensors, marks in a prompt, and their Specs."""

from __future__ import annotations

from math import ceil
from typing import Any

from vlmexport.checkpoint.documents import read_object, section, whole
from vlmexport.checkpoint.image_text import ImageText
from vlmexport.checkpoint.spec import ImageProcessorSpec, ProjectorSpec, PromptSpec, Spec, VisionSpec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading import language, nested, vision
from vlmexport.families.reading.bundles import OWN, Clients, Mmproj
from vlmexport.families.reading.defaults import filled, refuse_unread
from vlmexport.families.reading.image_processor import read_image_processor
from vlmexport.families.reading.published import Published, pad_id, stop_ids, stored_type
from vlmexport.processing.tiles import LARGEST

IMAGE_TEXT = ImageText(
    tile="<fake_token_around_image><row_{row}_col_{column}>",
    row_end="\n",
    whole="\n<fake_token_around_image><global-img>",
    alone="<fake_token_around_image><global-img>",
    end="<fake_token_around_image>",
)
"""As both processors write it. Where a tokenizer has no such token, as the first SmolVLM's, a mark is plain text."""

_PLACES = {
    "vision_model.": ("vision", ""),
    "connector.modality_projection.": ("projector", ""),
    "text_model.": ("language", "model."),
}
_READ = (
    "text_config", "vision_config", "image_token_id", "scale_factor", "bos_token_id", "eos_token_id", "pad_token_id",
    "tie_word_embeddings", "vocab_size", "transformers.js_config", "use_reentrant_checkpointing",
)  # fmt: skip
_TEXT_READ = (
    "_flash_attn_2_enabled", "is_llama_config", "neftune_noise_alpha", "perceiver_config", "pixel_shuffle_factor",
    "transformers.js_config", "architectures",
)  # fmt: skip
_VISION_READ = (*vision.READ, "size", "max_image_size", "use_base_siglip")
"""The sections of published files say what they were trained with beside what their classes read."""

_ONE_TOKEN = ("\n", "\n\n", "<fake_token_around_image>", "<global-img>")
_LANCZOS = 1
_TWICE = (
    "stock llama.cpp shows this model a picture twice, as its only tile and as the whole, the model sees it once: it "
    "has twice as many visual tokens there; vlmexport runs the bundle as the model does"
)
_AT_ONCE = (
    "stock llama.cpp resizes a picture to {} pixels at once, the model to {} first: the same tiles, of pixels that "
    "differ a little"
)
_AS_IT_IS = (
    "stock llama.cpp resizes a picture to {} pixels, the model cuts it as large as it is: it has another number of "
    "tiles there"
)
_OTHER_FILTER = "stock llama.cpp resizes pictures by Lanczos, this model's processor by another filter: pixels differ"

_CURE = "use the files that were published together"


def place(name: str) -> tuple[str, str]:
    """As every version of transformers saves it, and as a model without its head is saved."""
    inner = name.removeprefix("model.")
    for prefix, (component, before) in _PLACES.items():
        if inner.startswith(prefix):
            return component, before + inner.removeprefix(prefix)
    return "language", name


def tower(config: dict[str, Any]) -> str | None:
    """It lies inside."""
    return None


def clients(spec: Spec) -> Clients:
    """The checkpoint's own documents, as transformers and transformers.js read them; onnxruntime-genai has no such
    kind."""
    return Clients(OWN, genai=None)


def gguf(spec: Spec) -> Mmproj:
    """libmtmd resizes a picture by Lanczos to one longest edge, and that to multiples of a tile: the two are the same
    where the file says a multiple. It always cuts: where the model does not, the file says the edge of a view, which
    gives one tile and the whole in place of many. It always resizes, too: where the model does not, the file keeps what
    the processor's says all the same."""
    pixels, notes = spec.image_processor, []
    longest, side = min(pixels.size.longest_edge or LARGEST, LARGEST), pixels.side
    edge = ceil(longest / side) * side if pixels.do_image_splitting else side
    if edge == side:
        notes.append(_TWICE)
    elif not pixels.do_resize:
        notes.append(_AS_IT_IS.format(edge))
    elif edge != pixels.size.longest_edge:
        notes.append(_AT_ONCE.format(edge, pixels.size.longest_edge))
    if pixels.resample != _LANCZOS:
        notes.append(_OTHER_FILTER)
    return Mmproj({"clip.vision.preproc_image_size": ("u32", edge)}, tuple(notes), _ONE_TOKEN)


def read(published: Published, kind: str) -> Spec:
    """``text_config`` and ``vision_config`` over their defaults.

    Args:
        kind: the layout, and transformers' model type.

    Raises:
        CheckpointError: something is missing or garbled, or documents and tensors differ.
        Unsupported: another language model or tower inside, or something else that is not known.
    """
    config, file = filled(published.config, kind), published.file
    refuse_unread(published.config, kind, _READ, str(file))
    own = section(published.config, "text_config", file) or {}
    outside = nested.outside(published.config)
    text = filled(own, "llama") | outside
    if text["model_type"] != "llama":
        raise Unsupported(f"{file}: a {text['model_type']!r} language model is not known", "known: llama")
    encoder = _tower(published, kind)
    decoder = language.published(text, file, others=_TEXT_READ)
    try:
        side, image_token = whole(config, "scale_factor"), whole(config, "image_token_id")
    except TypeError as error:
        raise CheckpointError(f"{file} garbles {error}", _CURE) from error
    if not 1 <= side <= encoder.grid:
        raise CheckpointError(f"{file}: scale_factor is {side}, a side has {encoder.grid} patches", _CURE)
    projector = ProjectorSpec(f"shuffle{side}_linear", encoder.hidden_size, decoder.hidden_size, encoder.num_patches)
    _check_length(published, encoder, side)
    if not published.chat_template:
        cure = f"save the processor beside the model: processor.save_pretrained({str(published.path)!r})"
        raise CheckpointError(f"{published.path} has no chat template", cure)
    # transformers writes Llama's default, 2, into every config, and generates by the generation config alone
    named = published.generation.get("eos_token_id") is not None
    stops = stop_ids({} if named else own | outside, published, None)
    return Spec(
        name=published.name,
        layout=kind,
        image_processor=_image_processor(published, encoder.image_size),
        vision=encoder,
        projector=projector,
        language=decoder,
        prompt=PromptSpec(),
        bos_token_id=None,
        eos_token_id=stops[0],
        stop_token_ids=stops,
        chat_template=published.chat_template,
        max_images=None,
        image_text=IMAGE_TEXT,
        pad_token_id=pad_id(text),
        torch_dtype=stored_type(text),
        image_token_id=image_token,
    )


def _tower(published: Published, kind: str) -> VisionSpec:
    file = published.file
    given = filled(section(published.config, "vision_config", file) or {}, f"{kind}_vision")
    known = ("idefics3", "idefics3_vision", "smolvlm_vision")
    if given["model_type"] not in known:
        raise Unsupported(f"{file}: a {given['model_type']!r} tower is not known", f"known: {', '.join(known)}")
    refuse_unread(given, f"{kind}_vision", _VISION_READ, f"{file}, vision_config")
    return vision.layered_tower(
        "idefics3", given, published.shapes["vision"], file, select_layer=-1, select_feature="patch"
    )


def _check_length(published: Published, encoder: VisionSpec, side: int) -> None:
    """The processor writes as many image tokens as the model has visual ones."""
    file = published.path / "processor_config.json"
    found, expected = whole(read_object(file), "image_seq_len", 0), (encoder.grid // side) ** 2
    if found and found != expected:
        raise CheckpointError(f"{file}: image_seq_len is {found}, a view has {expected} visual tokens", _CURE)


def _image_processor(published: Published, side: int) -> ImageProcessorSpec:
    if read_image_processor(published.path) is None:
        raise CheckpointError(f"{published.path} has no preprocessor_config.json", _CURE)
    found = published.image_processor(side)
    if found.mode != "tiles":
        raise Unsupported(f"{published.path}: the image processor cuts no tiles", "known: Idefics3's, SmolVLM's")
    return found
