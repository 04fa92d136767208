"""What a sparse config leaves out, and what a config says that would change the result and nobody reads.

The defaults of transformers' config classes stand in ``defaults.json``, which ``python -m tests.config_defaults``
writes and a test holds against the classes of the installed transformers: opening a checkpoint imports none of it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vlmexport.errors import Unsupported

FILE = Path(__file__).with_name("defaults.json")
_TRAINING = ("initializer_", "_", "gradient_checkpointing", "tune_", "freeze_", "unfreeze_", "tokenizer_")
_DROPOUT = ("dropout", "pdrop", "_drop_rate")
_WITHOUT_EFFECT = frozenset((
    "use_cache", "torch_dtype", "auto_map", "attn_implementation", "pretraining_tp", "projection_dim",
    "transformers_weights", "max_sequence_length", "quantization_config",
))  # fmt: skip
"""Keys of published configs that change nothing of what a model computes. Whether weights are quantized, they tell."""


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return document


def defaults(model_type: str) -> dict[str, Any]:
    """Every field of a config class, with the value that it has where a config does not say."""
    return dict(_document()["models"][model_type])


def filled(section: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """A section with the defaults of its class where it says nothing."""
    return defaults(model_type) | {key: value for key, value in section.items() if value is not None}


def refuse_unread(section: Mapping[str, Any], model_type: str, read: Collection[str], where: str) -> None:
    """Refuse what a section says beside what is read of it: a key may stay at the default of its class, say nothing
    (null, false, empty), or be one that changes nothing of what a model computes.

    Args:
        model_type: whose defaults count.
        where: the file and the section, for the message.

    Raises:
        Unsupported: names the first such key.
    """
    known = _document()["models"].get(model_type, {})
    ignored = {*read, *_WITHOUT_EFFECT, *_document()["every_config"], *_document()["generation"]}
    for key, value in section.items():
        if key in ignored or key.startswith(_TRAINING) or key.endswith(_DROPOUT):
            continue
        if (value != known[key]) if key in known else (value or (value == 0 and value is not False)):
            raise Unsupported(
                f"{where}: {key} is {json.dumps(value)[:60]}, which is not known and may change the result",
                "remove the key from a copy of config.json where it changes nothing",
            )
