"""What a family says of its bundles. A family that says nothing has what is default here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OWN = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "generation_config.json", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
"""Documents of a checkpoint that a client may look for, beside its tokenizer."""

Field = tuple[str, Any]
"""A value of GGUF's metadata with its type: ``u32``, ``f32``, ``bool``, ``str``, or an array such as ``i32[]``."""


@dataclass(frozen=True)
class Clients:
    """What a bundle of graphs carries for transformers.js, transformers' processors and onnxruntime-genai.

    ``copied``: documents of the checkpoint that go into the bundle as they are; those that it lacks are made as for
    LLaVA, where a client needs them. ``made``: file name → the document that takes the place of the one that is made,
    an empty one of a file that is left out. ``changes``: file name → keys that are put over its document. ``pixels``:
    keys that are put over those of the image processor, in whichever document it stands. ``genai``: what
    onnxruntime-genai calls a chain of such graphs; None where it has none of this kind.
    """

    copied: tuple[str, ...] = ()
    made: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pixels: Mapping[str, Any] = field(default_factory=dict)
    genai: str | None = "phi3v"


@dataclass(frozen=True)
class Mmproj:
    """What an mmproj says beside what the files of its tower and its projector say.

    ``fields``: of its metadata, put over theirs. ``notes``: where libmtmd makes other pixels or tokens. ``one_token``:
    texts that it writes around views as one token each, and that the vocabulary may lack.
    """

    fields: Mapping[str, Field] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    one_token: tuple[str, ...] = ()
