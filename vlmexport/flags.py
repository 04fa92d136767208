"""What the flags of commands mean in a recipe."""

from __future__ import annotations

from typing import Any

from vlmexport.errors import UsageError
from vlmexport.recipe import Gates, budget_label, resolve, shipped

_GGUF_BITS = {
    2: "q2_k", 3: "q3_k_m", 4: "q4_k_m", 5: "q5_k_m", 6: "q6_k", 8: "q8_0", 16: "f16", 32: "f32"
}  # fmt: skip
_VISION_GATES = tuple(key for key in Gates.model_fields if key.startswith(("pixels", "features", "tokens")))
_ONNX_VISION, _Q8_VISION = "onnx-x86", "gguf-q8_0-mmproj"


def gguf_type(kind: str | None, bits: int | None) -> str | None:
    """The GGUF type that ``--type`` or ``--bits`` names; None where neither was given.

    Raises:
        UsageError: both or an unknown number of bits.
    """
    if bits is None:
        return kind.lower() if kind else None
    if kind is not None:
        raise UsageError("--bits and --type were both given", "pass one of them")
    if bits not in _GGUF_BITS:
        raise UsageError(f"--bits {bits} is unknown", f"known: {', '.join(map(str, _GGUF_BITS))}; or pass --type")
    return _GGUF_BITS[bits]


def budget_flags(kind: str | None, max_size: str | None, bpw: float | None) -> dict[str, Any]:
    """The recipe keys of ``--max-size`` and ``--bpw``; empty where neither was given.

    Raises:
        UsageError: a type was given as well, or both.
    """
    if max_size is None and bpw is None:
        return {}
    if kind is not None or (max_size is not None and bpw is not None):
        raise UsageError("--type, --bits, --max-size and --bpw exclude each other", "pass one of them")
    return {"gguf.max_size": max_size, "gguf.bpw": bpw, "name": f"gguf-{budget_label(max_size, bpw)}"}


def gguf_recipe(kind: str | None) -> tuple[str, dict[str, str]]:
    """The recipe for a GGUF type, q4_k_m where it is None, and the flags that complete it.

    A type without a recipe of its own is judged by the gates of q4_k_m.
    """
    kind = kind or "q4_k_m"
    if f"gguf-{kind}" in shipped():
        return f"gguf-{kind}", {}
    return "gguf-q4_k_m", {"gguf.type": kind, "name": f"gguf-{kind}"}


def vision_flags(vision: str | None, mmproj_type: str | None, base: str, name: str) -> dict[str, Any]:
    """The flags that give a GGUF recipe another vision encoder, and the gates that fit it.

    Pixels, features and tokens are held to the gates of the recipe that the vision encoder is of; logits and answers,
    which both halves make, to those of the coarser recipe.

    Args:
        vision: ``mmproj``, ``onnx`` (a hybrid, static int8), or the ONNX recipe that says how; None is ``mmproj``.
        mmproj_type: its type; the recipe's own where it is None.
        base: the GGUF recipe.
        name: what it is called.

    Raises:
        UsageError: neither of these.
    """
    hybrid = vision not in (None, "mmproj")
    flags: dict[str, Any] = {
        "gguf.vision": vision and ("onnx" if hybrid else "mmproj"),
        "gguf.mmproj_type": mmproj_type,
    }
    if not hybrid and mmproj_type != "q8_0":
        return flags
    source = vision if hybrid and vision != "onnx" else _ONNX_VISION if hybrid else _Q8_VISION
    chosen, decoder = resolve(str(source), environ={}), resolve(base, environ={})
    coarser = min(chosen.gates, decoder.gates, key=lambda gates: gates.logits_agreement or 0.0)
    flags["gates"] = coarser.model_dump() | {key: getattr(chosen.gates, key) for key in _VISION_GATES}
    if not hybrid:
        return flags
    if chosen.format != "onnx":
        raise UsageError(f"--vision {vision} is no ONNX recipe", "pass mmproj, onnx, or a recipe such as onnx-arm64")
    of_vision = {"name": f"{name}-{chosen.name}", "target": chosen.target, "onnx": chosen.onnx.model_dump()}
    return flags | of_vision
