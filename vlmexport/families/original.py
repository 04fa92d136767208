"""MobileVLM V1 and V2 and LLaVA-1.5, as their own code saves them: a Llama whose config carries ``mm_…`` keys."""

from __future__ import annotations

from vlmexport.checkpoint.documents import architectures, section
from vlmexport.checkpoint.spec import ProjectorSpec, PromptSpec, Spec
from vlmexport.families.reading import flat, language, vision
from vlmexport.families.reading.defaults import refuse_unread
from vlmexport.families.reading.published import Published, pad_id, stop_ids, stored_type, token_id

ARCHITECTURES = ("MobileLlamaForCausalLM", "LlavaLlamaForCausalLM")
MODEL_TYPES = ("mobilevlm", "llava", "llava_llama")
SECTIONS: tuple[str, ...] = ()
_NAMES = {
    "mobilevlm": "mobilevlm", "MobileLlamaForCausalLM": "mobilevlm", "llava": "llava", "llava_llama": "llava",
    "LlavaLlamaForCausalLM": "llava",
}  # fmt: skip
_TOWER = "model.vision_tower.vision_tower."
_PROJECTOR = "model.mm_projector."

tower = flat.tower


def place(name: str) -> tuple[str, str]:
    """The tower lies under ``model.vision_tower.vision_tower.``, with or without ``vision_model.``."""
    if name.startswith(_TOWER):
        return "vision", name.removeprefix(_TOWER).removeprefix("vision_model.")
    if name.startswith(_PROJECTOR):
        return "projector", name.removeprefix(_PROJECTOR)
    return "language", name


def spec(published: Published) -> Spec:
    """The config is the language model's own.

    Raises:
        CheckpointError: a value is garbled.
        Unsupported: images are cut in tiles, or something is said of the tower that is not known.
    """
    config, file = published.config, published.file
    pads, marks = flat.pads(config, file), flat.marks(config, file)
    given, said_in = published.of_tower(section(config, "vision_config", file) or {})
    refuse_unread(given, "clip_vision_model", vision.READ, f"{said_in}, vision_config")
    encoder = vision.layered_tower(
        "clip", given, published.shapes["vision"], said_in,
        select_layer=config.get("mm_vision_select_layer", -2),
        select_feature=str(config.get("mm_vision_select_feature", "patch")),
    )  # fmt: skip
    text = language.published(config, file, others=flat.KEYS)
    kind = str(config.get("mm_projector_type", "linear"))
    layout = next(_NAMES[name] for name in (str(config.get("model_type")), *architectures(config)) if name in _NAMES)
    return Spec(
        name=published.name,
        layout=layout,
        image_processor=published.image_processor(encoder.image_size, pads),
        vision=encoder,
        projector=ProjectorSpec(kind, encoder.hidden_size, text.hidden_size, encoder.num_patches),
        language=text,
        prompt=PromptSpec(image_start="<im_start>", image_end="<im_end>") if marks else PromptSpec(),
        bos_token_id=token_id(config, "bos_token_id", 1, file),
        eos_token_id=token_id(config, "eos_token_id", 2, file),
        stop_token_ids=stop_ids(config, published),
        max_images=1 if layout == "mobilevlm" else None,
        pad_token_id=pad_id(config),
        torch_dtype=stored_type(config),
    )
