"""Which files of a repository on the Hub a checkpoint is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

_BESIDE = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "README.md")
"""What configs, tokenizers and templates are read from. Code is never fetched."""

_OF_TRAINING = ("trainer_state.json", "*.index.json")
_FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
"""Stem and ending of weights, in the order in which they are preferred (``tensors.weight_files``)."""

_OF_A_PROJECTOR = "mm_projector.bin"
"""What is fetched where there is nothing else, so that it can be called by its name."""


def wanted(names: Iterable[str]) -> list[str]:
    """The files to fetch: weights in one format, and what lies beside them. Sub-folders hold other formats (``onnx/``)
    or other programs' files (``original/``)."""
    top = sorted(name for name in names if "/" not in name)
    beside = [name for name in top if _matches(name, _BESIDE) and not _matches(name, _OF_TRAINING)]
    return [*beside, *_weights(top)]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _weights(top: list[str]) -> list[str]:
    for stem, ending in _FORMATS:
        index, single = f"{stem}.{ending}.index.json", f"{stem}.{ending}"
        shards = [name for name in top if re.fullmatch(rf"{stem}-\d+-of-\d+\.{ending}", name)]
        if index in top and shards:
            return [index, *shards]
        if single in top:
            return [single]
    return [name for name in top if name == _OF_A_PROJECTOR]
