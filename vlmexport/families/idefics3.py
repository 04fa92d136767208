"""Idefics3 as transformers saves it: SigLIP sees a picture in tiles, a pixel shuffle, Llama."""

from __future__ import annotations

from vlmexport.checkpoint.spec import Spec
from vlmexport.families.reading import idefics3
from vlmexport.families.reading.published import Published

ARCHITECTURES = ("Idefics3ForConditionalGeneration",)
MODEL_TYPES = ("idefics3",)
SECTIONS: tuple[str, ...] = ()

place, tower = idefics3.place, idefics3.tower
clients, gguf = idefics3.clients, idefics3.gguf


def spec(published: Published) -> Spec:
    """As both layouts are read."""
    return idefics3.read(published, "idefics3")
