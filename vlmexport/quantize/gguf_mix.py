"""Which type each tensor of a language model gets in a GGUF mix. Pure functions; no weights are read.

The rules are llama.cpp's (gguf_rules.py), so that a bundle equals what ``llama-quantize`` makes: some tensors get more
bits than the rest, and a row that is no multiple of a block falls back to a smaller block.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from vlmexport.errors import UsageError
from vlmexport.quantize.ggml import TYPES
from vlmexport.quantize.gguf_rules import Decoder, Place, departure, output


@dataclass(frozen=True)
class Mix:
    """A named mix: its number in ``general.file_type``, and the type of most tensors."""

    name: str
    file_type: int
    default: str


_FILE_TYPES = {
    "f32": (0, "f32"),
    "f16": (1, "f16"),
    "q4_0": (2, "q4_0"),
    "q4_1": (3, "q4_1"),
    "q8_0": (7, "q8_0"),
    "q5_0": (8, "q5_0"),
    "q5_1": (9, "q5_1"),
    "q2_k": (10, "q2_k"),
    "q3_k_s": (11, "q3_k"),
    "q3_k_m": (12, "q3_k"),
    "q3_k_l": (13, "q3_k"),
    "q4_k_s": (14, "q4_k"),
    "q4_k_m": (15, "q4_k"),
    "q5_k_s": (16, "q5_k"),
    "q5_k_m": (17, "q5_k"),
    "q6_k": (18, "q6_k"),
    "iq3_xxs": (23, "iq3_xxs"),
    "iq4_nl": (25, "iq4_nl"),
    "iq3_s": (26, "iq3_s"),
    "iq2_s": (28, "iq2_xs"),  # llama.cpp's name: the mix is mostly iq2_xs
    "iq4_xs": (30, "iq4_xs"),
    "bf16": (32, "bf16"),
}
_FALLBACK = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"} | dict.fromkeys(
    ("iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"
)


def mixes() -> tuple[str, ...]:
    """Names of all mixes."""
    return tuple(_FILE_TYPES)


def find_mix(name: str) -> Mix:
    """The mix of a name such as ``q4_k_m``, in upper or lower case.

    Raises:
        UsageError: there is none; names the nearest.
    """
    key = name.lower()
    if key not in _FILE_TYPES:
        near = get_close_matches(key, _FILE_TYPES, n=1)
        cure = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_FILE_TYPES)}"
        raise UsageError(f"unknown GGUF type {name!r}", cure)
    return Mix(key, *_FILE_TYPES[key])


def mostly(tensors: Mapping[str, tuple[str, int]]) -> Mix:
    """What to call a model of any types in ``general.file_type``: the mix of the type that most weights have.

    Args:
        tensors: name → type, number of weights.
    """
    weights: Counter[str] = Counter()
    for kind, count in tensors.values():
        weights[kind] += count
    most = weights.most_common(1)[0][0]
    return next(Mix(key, *found) for key, found in _FILE_TYPES.items() if found[1] == most)


def in_order(names: Mapping[str, object] | list[str]) -> list[str]:
    """Tensor names in the order that llama.cpp writes them: outside of the blocks first, then block by block."""
    return sorted(names, key=lambda name: (_layer(name), name))


def quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor takes a mix's type: matrices do; norms, biases and learned positions stay f32."""
    return len(shape) > 1 and name.endswith("weight") and "_norm." not in name and not name.startswith("position_embd")


def tensor_types(
    mix: Mix,
    shapes: Mapping[str, tuple[int, ...]],
    decoder: Decoder,
    importance: bool,
    given: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The type of every tensor.

    As in llama.cpp a tensor whose type is given does not count: where a mix gives the first two value projections
    more bits, the first two of those that are left get them.

    Args:
        shapes: GGUF name → shape, rows first.
        importance: whether there is an importance matrix; some mixes take other types then.
        given: GGUF name → type that the rules do not decide (gguf_override.py).
    """
    given, tied = given or {}, "output.weight" not in shapes
    types: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for name in in_order(shapes):
        columns, role = shapes[name][-1], name.split(".")[-2]
        if not quantizable(name, shapes[name]):
            types[name] = "f32"
        elif name in given:
            types[name] = given[name]
        elif TYPES[mix.default].block == 1:
            types[name] = mix.default
        elif name == "output.weight" or (tied and name == "token_embd.weight"):
            types[name] = fit(output(mix.name, mix.default, columns % TYPES[mix.default].block == 0), columns)
        else:
            found = departure(mix.name, mix.default, role, Place(seen[role], decoder, importance))
            types[name] = fit(found or mix.default, columns)
            seen[role] += 1
    return types


def fit(type_name: str, columns: int) -> str:
    """The type, or what llama.cpp takes instead where its block does not divide the row: a smaller block, else f16."""
    if columns % TYPES[type_name].block == 0:
        return type_name
    smaller = _FALLBACK.get(type_name, type_name)
    return smaller if columns % TYPES[smaller].block == 0 else "f16"


def needs_importance(name: str, type_name: str) -> bool:
    """Whether a tensor cannot be of a type without an importance matrix.

    llama.cpp demands one for these types in the blocks; its kernel of iq2_xs aborts the process without one anywhere.
    """
    outside = name in ("token_embd.weight", "output.weight")
    return type_name == "iq2_xs" or (type_name in ("iq2_s", "iq3_xxs") and not outside)


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1
