"""FastVLM as Apple publishes it (``LlavaQwen2ForCausalLM``): a Qwen2 whose config carries ``mm_…`` keys.

Others have published models of the same name with other towers; those are refused.
"""

from __future__ import annotations

import re

from vlmexport.checkpoint.spec import PromptSpec, Spec
from vlmexport.errors import Unsupported
from vlmexport.families.reading import fastvit, flat, language
from vlmexport.families.reading.bundles import Clients
from vlmexport.families.reading.chatml import CHATML
from vlmexport.families.reading.defaults import filled
from vlmexport.families.reading.fastvit_tensors import timm_name
from vlmexport.families.reading.published import Published, pad_id, stop_ids, stored_type

ARCHITECTURES = ("LlavaQwen2ForCausalLM",)
MODEL_TYPES = ("llava_qwen2",)
SECTIONS: tuple[str, ...] = ()
_TOWER = "model.vision_tower.vision_tower."
_PROJECTOR = "model.mm_projector."
_KNOWN = re.compile(r"mobileclip_l_(\d+)")

tower = flat.tower


def place(name: str) -> tuple[str, str] | None:
    """The tower lies under ``model.vision_tower.vision_tower.model.``, with a head that FastVLM does not use."""
    if name.startswith(_TOWER):
        inner = name.removeprefix(_TOWER).removeprefix("model.")
        return None if inner.startswith("head.") else ("vision", timm_name(inner))
    if name.startswith(_PROJECTOR):
        return "projector", name.removeprefix(_PROJECTOR)
    return "language", name


def clients(spec: Spec) -> Clients:
    """LLaVA's, under the name that transformers.js has for it."""
    return fastvit.CLIENTS


def spec(published: Published) -> Spec:
    """The config is Qwen2's own. ``mm_vision_select_layer`` counts for nothing: this tower has one output.

    Raises:
        Unsupported: another tower, or images cut in tiles.
    """
    config, file = published.config, published.file
    named = str(flat.tower(config))
    found = _KNOWN.fullmatch(named)
    if not found:
        raise Unsupported(
            f"{file}: a llava_qwen2 with the vision tower {named!r} is not known", "known: mobileclip_l_1024 (FastVLM)"
        )
    pixels = fastvit.image_processor(published, int(found[1]), flat.pads(config, file))
    if flat.marks(config, file):
        raise Unsupported(f"{file}: mm_use_im_start_end is true, which is not known of FastVLM", "known: false")
    encoder = fastvit.tower(published, int(found[1]), config.get("mm_hidden_size"))
    text = filled(config, "qwen2")
    decoder = language.published(text, file, "qwen2", flat.KEYS)
    stops = stop_ids(text, published, None)
    return Spec(
        name=published.name,
        layout="llava-qwen2",
        image_processor=pixels,
        vision=encoder,
        projector=fastvit.projector(encoder, decoder, str(config.get("mm_projector_type", "linear"))),
        language=decoder,
        prompt=PromptSpec(),
        bos_token_id=None,
        eos_token_id=stops[0],
        stop_token_ids=stops,
        chat_template=CHATML,
        max_images=None,
        pad_token_id=pad_id(text),
        torch_dtype=stored_type(text),
    )
