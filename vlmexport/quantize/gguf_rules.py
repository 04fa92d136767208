"""Where a mix departs from its default type, tensor by tensor. Pure functions; llama.cpp's rules for Llama,
Qwen2 and GPT-2.

Source of the facts: ``llama-quant.cpp`` at 0c1e57098.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUPED = 4
"""Query heads to one key head from which the value projections are small enough to be given more bits."""


@dataclass(frozen=True)
class Decoder:
    """What the rules ask of a model. ``groups``: query heads to one key head."""

    layers: int
    groups: int


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: the how manyth of its role (from 0), in which decoder.

    ``importance`` says whether there is an importance matrix, which some rules ask.
    """

    index: int
    decoder: Decoder
    importance: bool

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a key head."""
        return self.decoder.groups >= GROUPED

    @property
    def first(self) -> bool:
        """Whether it is in the first eighth."""
        return self.index < self.decoder.layers // 8

    @property
    def more(self) -> bool:
        """Whether it is in the first or last eighth, or every third between."""
        layers = self.decoder.layers
        return self.first or self.index >= 7 * layers // 8 or (self.index - layers // 8) % 3 == 2


def output(mix: str, default: str, fits: bool) -> str:
    """The type of the output, or of a tied embedding; ``fits``: the default's block divides the row."""
    if default == "q8_0" or not fits:
        return "q8_0"
    return "q5_k" if mix in ("iq2_s", "iq3_xxs") else "q6_k"


def departure(mix: str, default: str, role: str, place: Place) -> str | None:
    """The type that a mix gives a tensor of a block, or an embedding that is not tied; None for its default.

    Args:
        role: the name's last part but one: ``attn_v``, ``ffn_down``, ``token_embd``.
    """
    match role:
        case "attn_v" | "attn_qkv":
            return _attn_v(mix, default, place)
        case "ffn_down":
            return _ffn_down(mix, place)
        case "attn_output":
            kinds = {"q2_k": "q3_k", "q3_k_m": "q4_k", "q3_k_l": "q5_k", "iq2_s": "iq3_s", "iq3_xxs": "iq3_s"}
            return kinds.get(mix)
        case "attn_q" | "attn_k" if mix == "iq3_xxs":
            return "iq2_s"
        case "token_embd" if mix in ("iq2_s", "iq3_xxs"):
            return "iq3_s"
    return None


def _attn_v(mix: str, default: str, place: Place) -> str | None:
    found = _value(mix, place)
    is_70b = place.decoder.layers == 80 and place.decoder.groups > 1
    return "q5_k" if is_70b and mix != "iq2_s" and (found or default) in ("q3_k", "q4_k") else found


def _value(mix: str, place: Place) -> str | None:
    match mix:
        case "q2_k":
            return "q4_k" if place.grouped else "q3_k"
        case "q3_k_m":
            return "q5_k" if place.index < 2 else "q4_k"
        case "q3_k_l":
            return "q5_k"
        case "iq2_s":
            return "q4_k" if place.grouped else "iq3_s"
        case "iq3_xxs" if not place.grouped:
            return None if place.importance else "iq3_s"
        case "iq3_s" | "iq3_xxs" if place.grouped:
            return "q4_k"
        case "iq4_nl" | "iq4_xs" if place.grouped:
            return "q5_k"
        case "q4_k_m" | "q5_k_m" if place.more:
            return "q6_k"
        case "q4_k_s" if place.index < 4:
            return "q5_k"
    return None


def _ffn_down(mix: str, place: Place) -> str | None:
    match mix:
        case "q2_k":
            return "q3_k"
        case "q3_k_m":
            return "q5_k" if place.index < place.decoder.layers // 16 else "q4_k"
        case "q3_k_l":
            return "q5_k"
        case "iq2_s" if place.first:
            return "iq3_s"
        case "iq3_xxs" if not place.importance:
            return "q4_k" if place.first else "q3_k"
        case "q4_k_m" | "q5_k_m" if place.more:
            return "q6_k"
        case "q4_k_s" if place.first:
            return "q5_k"
        case "iq4_nl" | "iq4_xs" if place.first and not place.importance:
            return "q5_k"
        case "q4_0" | "q5_0" if place.first and place.importance:
            return {"q4_0": "q4_1", "q5_0": "q5_1"}[mix]
    return None
