"""Which type each tensor of a Llama gets in a GGUF mix. Pure functions; no weights are read.

The rules are llama.cpp's (``llama-quant.cpp`` at 0c1e57098), so that a bundle equals what ``llama-quantize`` makes:
some tensors get more bits than the rest, and a row that is no multiple of a block falls back to a smaller block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from vlmexport.errors import UsageError
from vlmexport.quantize.ggml import TYPES


@dataclass(frozen=True)
class Mix:
    """A named mix: its number in ``general.file_type``, and the type of most tensors."""

    name: str
    file_type: int
    default: str

    @property
    def uses_importance(self) -> bool:
        """Whether an importance matrix changes its bytes."""
        return self.default not in ("f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class Decoder:
    """What the rules ask of a model. ``groups``: query heads to one key head."""

    layers: int
    groups: int


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
    "iq4_nl": (25, "iq4_nl"),
    "iq4_xs": (30, "iq4_xs"),
    "bf16": (32, "bf16"),
}
_FALLBACK = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl"}


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


def in_order(names: Mapping[str, object] | list[str]) -> list[str]:
    """Tensor names in the order that llama.cpp writes them: outside of the blocks first, then block by block."""
    return sorted(names, key=lambda name: (_layer(name), name))


def tensor_types(mix: Mix, shapes: Mapping[str, tuple[int, ...]], decoder: Decoder, importance: bool) -> dict[str, str]:
    """The type of every tensor.

    Args:
        shapes: GGUF name → shape, rows first.
        importance: whether there is an importance matrix; some mixes take other types then.
    """
    tied = "output.weight" not in shapes
    types = {}
    for name in in_order(shapes):
        shape = shapes[name]
        if len(shape) < 2 or not name.endswith("weight") or "_norm." in name:
            types[name] = "f32"
        elif TYPES[mix.default].block == 1:
            types[name] = mix.default
        elif name == "output.weight" or (tied and name == "token_embd.weight"):
            types[name] = _fit(_output(mix, shape[-1]), shape[-1])
        else:
            types[name] = _fit(_inner(mix, name, decoder, importance) or mix.default, shape[-1])
    return types


def _output(mix: Mix, columns: int) -> str:
    if mix.default == "q8_0" or columns % TYPES[mix.default].block:
        return "q8_0"
    return "q6_k"


def _inner(mix: Mix, name: str, decoder: Decoder, importance: bool) -> str | None:
    """The type of a block's tensor where the mix departs from its default."""
    layer = _layer(name)
    if "attn_v." in name:
        found = _attn_v(mix.name, layer, decoder)
        is_70b = decoder.layers == 80 and decoder.groups > 1
        return "q5_k" if is_70b and (found or mix.default) in ("q3_k", "q4_k") else found
    if "ffn_down." in name:
        return _ffn_down(mix.name, layer, decoder.layers, importance)
    if "attn_output." in name:
        return {"q2_k": "q3_k", "q3_k_m": "q4_k", "q3_k_l": "q5_k"}.get(mix.name)
    return None


def _attn_v(mix: str, layer: int, decoder: Decoder) -> str | None:
    grouped = decoder.groups >= 4
    match mix:
        case "q2_k":
            return "q4_k" if grouped else "q3_k"
        case "q3_k_m":
            return "q5_k" if layer < 2 else "q4_k"
        case "q3_k_l":
            return "q5_k"
        case "iq4_nl" | "iq4_xs" if grouped:
            return "q5_k"
        case "q4_k_m" | "q5_k_m" if _more(layer, decoder.layers):
            return "q6_k"
        case "q4_k_s" if layer < 4:
            return "q5_k"
    return None


def _ffn_down(mix: str, layer: int, layers: int, importance: bool) -> str | None:
    first = layer < layers // 8
    match mix:
        case "q2_k":
            return "q3_k"
        case "q3_k_m":
            return "q5_k" if layer < layers // 16 else "q4_k"
        case "q3_k_l":
            return "q5_k"
        case "q4_k_m" | "q5_k_m" if _more(layer, layers):
            return "q6_k"
        case "q4_k_s" if first:
            return "q5_k"
        case "iq4_nl" | "iq4_xs" if first and not importance:
            return "q5_k"
        case "q4_0" if first and importance:
            return "q4_1"
        case "q5_0" if first and importance:
            return "q5_1"
    return None


def _more(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fit(type_name: str, columns: int) -> str:
    """A type whose block divides the row."""
    if columns % TYPES[type_name].block == 0:
        return type_name
    smaller = _FALLBACK.get(type_name, type_name)
    return smaller if columns % TYPES[smaller].block == 0 else "f16"


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1
