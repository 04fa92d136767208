"""InternVL as transformers saves it: InternViT sees a picture in tiles, a pixel shuffle, Qwen2, Qwen3 or Llama."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlmexport.checkpoint.documents import read_object, section, whole
from vlmexport.checkpoint.spec import ImageProcessorSpec, PromptSpec, Spec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading import internvl, language, nested
from vlmexport.families.reading.bundles import OWN, Clients, Mmproj
from vlmexport.families.reading.defaults import filled, refuse_unread
from vlmexport.families.reading.image_processor import read_image_processor
from vlmexport.families.reading.published import Published, pad_id, stop_ids, stored_type

ARCHITECTURES = ("InternVLForConditionalGeneration",)
MODEL_TYPES = ("internvl",)
SECTIONS: tuple[str, ...] = ()
_READ = (
    "text_config", "vision_config", "image_token_id", "image_token_index", "image_seq_length", "downsample_ratio",
    "vision_feature_layer", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings",
)  # fmt: skip
_PROJECTOR = {"layer_norm": "0", "linear_1": "1", "linear_2": "3"}
_TOKENS = 256
"""Visual tokens of a view, where the processor's file does not say."""

_CURE = "use the files that were published together"


def place(name: str) -> tuple[str, str]:
    """In transformers' new names and in LLaVA's, which it writes back."""
    inner = name.removeprefix("model.")
    if inner.startswith("multi_modal_projector."):
        layer, _, part = inner.removeprefix("multi_modal_projector.").partition(".")
        return "projector", f"{_PROJECTOR.get(layer, layer)}.{part}"
    return nested.place(name)


def tower(config: dict[str, Any]) -> str | None:
    """It lies inside."""
    return None


def clients(spec: Spec) -> Clients:
    """The checkpoint's own documents, as transformers reads them. Neither transformers.js nor onnxruntime-genai has
    such a model. The image processor's says that pictures are cut, which its published file leaves to InternVL's
    processor: who opens that file alone cuts, too."""
    return Clients(OWN, pixels={"crop_to_patches": True}, genai=None)


def gguf(spec: Spec) -> Mmproj:
    """As both layouts are written."""
    return internvl.gguf(spec)


def spec(published: Published) -> Spec:
    """``text_config`` and ``vision_config`` over their defaults.

    Raises:
        CheckpointError: something is missing or garbled, or documents and tensors differ.
        Unsupported: another language model, the tower of 6B, or something else that is not known.
    """
    config, file = filled(published.config, "internvl"), published.file
    refuse_unread(published.config, "internvl", _READ, str(file))
    own = section(published.config, "text_config", file) or {}
    kind = own.get("model_type", "qwen2")
    if kind not in internvl.LANGUAGES:
        raise Unsupported(f"{file}: a {kind!r} language model is not known", f"known: {', '.join(internvl.LANGUAGES)}")
    # The outer word counts, and it is true where it is not said; a head that differs from the embedding counts more.
    text = filled(own, kind) | nested.outside(published.config) | {"tie_word_embeddings": config["tie_word_embeddings"]}
    given = filled(section(published.config, "vision_config", file) or {}, "internvl_vision")
    encoder = internvl.tower(given, published.shapes["vision"], file, config["vision_feature_layer"])
    decoder = language.published(text, file, kind, ("architectures",))
    bridge = internvl.projector(encoder, decoder.hidden_size, config["downsample_ratio"], file)
    _check_length(published, (encoder.grid // 2) ** 2)
    if not published.chat_template:
        raise CheckpointError(f"{published.path} has no chat template", "copy chat_template.jinja from where it is")
    # transformers generates by the generation config alone, where there is one
    named = published.generation.get("eos_token_id") is not None
    stops = stop_ids({} if named else text, published, None)
    return Spec(
        name=published.name,
        layout="internvl",
        image_processor=_image_processor(published, encoder.image_size),
        vision=encoder,
        projector=bridge,
        language=decoder,
        prompt=PromptSpec(),
        bos_token_id=None,
        eos_token_id=stops[0],
        stop_token_ids=stops,
        chat_template=published.chat_template,
        max_images=None,
        image_text=internvl.IMAGE_TEXT,
        pad_token_id=pad_id(text),
        torch_dtype=stored_type(text),
        image_token_id=whole(config, "image_token_index", whole(config, "image_token_id")),
    )


def _check_length(published: Published, expected: int) -> None:
    """The processor writes as many image tokens as the model has visual ones."""
    file = published.path / "processor_config.json"
    found = whole(read_object(file), "image_seq_length", _TOKENS)
    if found != expected:
        raise CheckpointError(f"{file}: image_seq_length is {found}, a view has {expected} visual tokens", _CURE)


def _image_processor(published: Published, side: int) -> ImageProcessorSpec:
    """InternVL's processor cuts pictures, whatever the file says."""
    if read_image_processor(published.path) is None:
        raise CheckpointError(f"{published.path} has no preprocessor_config.json", _CURE)
    found = published.image_processor(side)
    if found.mode != "canvas":
        raise Unsupported(f"{published.path}: the image processor cuts no tiles", "known: GotOcr2ImageProcessor")
    return replace(found, do_image_splitting=True)
