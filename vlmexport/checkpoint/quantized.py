"""Checkpoints whose weights are no floats: quantized already by another tool, or stripped of their scales.

What a tensor holds decides, not what a config says: a merged fine-tune often keeps the ``quantization_config`` of the
model that it was trained on, and its weights are floats again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.about import read_about
from vlmexport.checkpoint.documents import read_object
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.errors import CheckpointError, Unsupported

FLOATS = ("f64", "f32", "f16", "bf16")
_COUNTERS = ("position_ids", "num_batches_tracked")
"""Ends of the names of whole numbers that a float model has too."""

_SMALL_FLOATS = ("f8", "f6", "f4", "float8", "float4")
_KEYS = ("quantization_config", "compression_config")
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""Files beside config.json in which tools wrote the same, and theirs."""

_SIGNS = {
    ".SCB": "bitsandbytes, 8 bits", ".absmax": "bitsandbytes, 4 bits", ".g_idx": "gptq", ".qweight": "gptq or awq",
    ".weight_packed": "compressed-tensors", ".weight_scale_inv": "fp8", ".weight_scale": "fp8 or compressed-tensors",
    "_blocks": "mxfp4", ".W_q": "hqq",
}  # fmt: skip
"""Ends of tensors' names that only one way of quantizing has."""

_SAVE = "load it with transformers{} and save that"
_BACK = {
    "bitsandbytes": _SAVE.format(", call dequantize()"),
    "higgs": _SAVE.format(", call dequantize()"),
    "fp8": _SAVE.format(" and FineGrainedFP8Config(dequantize=True)"),
    "mxfp4": _SAVE.format(" and Mxfp4Config(dequantize=True)"),
    "compressed-tensors": _SAVE.format(" and CompressedTensorsConfig(dequantize=True)"),
}
"""How to get floats back, where transformers can."""


def refuse_quantized(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Raise where a weight of a checkpoint folder holds something else than float16, bfloat16, float32 or float64.

    Args:
        tensors: by their published names.

    Raises:
        Unsupported: another tool has quantized them; the message says which, and how to get floats.
        CheckpointError: they are whole numbers, and nothing says of what.
    """
    odd = sorted(name for name, one in tensors.items() if one.dtype not in FLOATS and not name.endswith(_COUNTERS))
    if not odd:
        return
    config = read_object(folder / "config.json")
    said = _said(folder, config)
    what = said or next((what for end, what in _SIGNS.items() if any(name.endswith(end) for name in tensors)), None)
    first, dtype = odd[0], tensors[odd[0]].dtype
    more = f", and so do {len(odd) - 1} more" if len(odd) > 1 else ""
    if what is not None:
        cure = [f"pass the float model that it was made from{_base(folder, config)}"]
        cure += [way for method, way in _BACK.items() if what.startswith(method)]
        raise Unsupported(f"{folder} is quantized already ({what}; {first} holds {dtype})", ", or ".join(cure))
    if dtype.startswith(_SMALL_FLOATS):
        raise Unsupported(
            f"{folder}: {first} holds floats of 8 bits or fewer ({dtype}){more}",
            "pass the float16 or bfloat16 weights that they were made from",
        )
    raise CheckpointError(
        f"{folder}: {first} holds whole numbers ({dtype}) where a weight belongs, and no scales{more}",
        "it was quantized and its scales were lost: pass the float model that it was made from",
    )


def _said(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Method and bits, as the files of a folder say; None where they do not."""
    inside = config.get("text_config")
    for place in (config, inside if isinstance(inside, dict) else {}):
        found = next((place[key] for key in _KEYS if isinstance(place.get(key), dict)), None)
        if found is not None:
            return _text(str(found.get("quant_method") or _unnamed(found)), found)
    for name, method in _FILES.items():
        if (folder / name).is_file():
            return _text(method, read_object(folder / name))
    return None


def _unnamed(found: Mapping[str, Any]) -> str:
    """bitsandbytes did not name itself at first."""
    return "bitsandbytes" if any(str(key).startswith("load_in_") for key in found) else "an unknown method"


def _text(method: str, found: Mapping[str, Any]) -> str:
    known = {8: found.get("load_in_8bit"), 4: found.get("load_in_4bit")}
    bits = next((number for number, loads in known.items() if loads), found.get("bits", found.get("w_bit")))
    return f"{method}, {bits} bits" if isinstance(bits, int) else method


def _base(folder: Path, config: dict[str, Any]) -> str:
    """Its name, where the checkpoint tells it."""
    try:
        bases = read_about(folder, "", config).base_models
    except CheckpointError:
        return ""
    return f" ({bases[0]})" if bases else ""
