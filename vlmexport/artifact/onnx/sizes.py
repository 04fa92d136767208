"""Bytes of an ONNX bundle's graphs, from shapes alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from math import prod

from vlmexport.artifact.bundle.halves import Role
from vlmexport.artifact.onnx.build import whole_view
from vlmexport.artifact.onnx.genai import runs
from vlmexport.artifact.onnx.passes.clean import EXTERNAL_FROM
from vlmexport.artifact.onnx.tokenizer_file import content, image_token_id
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.model import plugins
from vlmexport.recipe import Onnx
from vlmexport.source.checkpoint import Checkpoint

_SCALE, _ZERO_POINT, _FLOAT, _HALF = 4, 1, 4, 2
_NODES = {"fp32": 7_500, "fp16": 3_500, "int8": 15_000, "int4": 5_300}
"""Bytes of a layer's nodes, measured: names mostly, so that they hardly depend on its widths."""

_TENSORS, _PRODUCTS, _COLOURS = 16, 6, 3
"""Tensors and products of a layer that ``_NODES`` was measured on."""

_SETTINGS = 10_000
"""Bytes of the clients' configuration files and the manifest."""


def decoder_sizes(checkpoint: Checkpoint, settings: Onnx) -> dict[Role, int]:
    """Graph of the decoding half → bytes of its weights, external data included. Reads no weights.

    Int8 takes every product to be quantized; what calibration keeps in float comes on top.

    Raises:
        Unsupported: an int4 or float16 decoder of a kind that has none.
    """
    spec, language, table = checkpoint.spec, checkpoint.tensors["language"], plugins.token_table(checkpoint)
    rows, tables = max(table.shape[0], image_token_id(checkpoint) + 1), plugins.language(spec.language).TABLES
    decoder = [(name, tensor) for name, tensor in language.items() if name not in tables]
    if spec.language.tie_word_embeddings:
        decoder.append(("lm_head.weight", table))
    embeddings = rows * table.columns * (2 if table.dtype == "f16" else _FLOAT)
    if settings.fused_decoder:
        plugins.check_fused(spec.language)
        language_bytes = _fused(decoder, checkpoint, settings)
    else:
        positions = sum(_FLOAT * language[name].numel for name in tables[1:])
        language_bytes = _graph(decoder, settings.decoder) + positions
    nodes = spec.language.num_layers * _NODES[settings.decoder]
    found: dict[Role, int] = {"embed_tokens": embeddings}
    if runs(checkpoint):
        found |= {"embedding": embeddings if embeddings < EXTERNAL_FROM else 0, "decoder": nodes}
    found["decoder_model_merged"] = language_bytes + nodes
    return found


def vision_sizes(checkpoint: Checkpoint, settings: Onnx) -> dict[Role, int]:
    """The same of the seeing half. What the kind of encoder keeps in float is counted so."""
    tower, projector = used_tower(checkpoint), checkpoint.tensors["projector"].items()
    spec = checkpoint.spec.vision
    kept = plugins.float_layers(spec)
    quantized = sum(_is_product(name, tensor) and not _is_kept(name, kept) for name, tensor in tower)
    stack = plugins.vision(spec).layers(spec) is not None
    layers, int8 = (spec.used_layers,) * 2 if stack else (len(tower) / _TENSORS, quantized / _PRODUCTS)
    nodes = int(layers * _NODES["fp32"] + int8 * (_NODES[settings.vision] - _NODES["fp32"]))
    pixels = checkpoint.spec.image_processor
    nodes += whole_view.repairing(pixels).ByteSize() if whole_view.can_repair(pixels) else 0
    return {
        "vision_encoder": _graph(tower, settings.vision, kept) + _graph(projector, settings.vision) + nodes,
        "projector": _graph(projector, settings.vision),
    }


def extras(checkpoint: Checkpoint) -> int:
    """Bytes of the other files, most of them ``tokenizer.json``."""
    return len(content(checkpoint).encode()) + _SETTINGS


def used_tower(checkpoint: Checkpoint) -> list[tuple[str, LazyTensor]]:
    """Tensors of the vision encoder that the features stage reads."""
    spec = checkpoint.spec.vision
    plugin = plugins.vision(spec)
    prefix, unused = plugin.layers(spec), plugin.unused(spec)
    layer = re.compile(rf"{re.escape(prefix)}(\d+)\." if prefix is not None else "(?!)")
    found = []
    for name, tensor in checkpoint.tensors["vision"].items():
        match = layer.match(name)
        if not name.startswith(unused) and (match is None or int(match[1]) < spec.used_layers):
            found.append((name, tensor))
    return found


def _graph(tensors: Iterable[tuple[str, LazyTensor]], precision: str, kept: Collection[str] = ()) -> int:
    """``kept``: patterns of an encoder's layers that stay in float, as paths in ``model.VLM``."""
    total = 0
    for name, tensor in tensors:
        quantized = precision == "int8" and _is_product(name, tensor) and not _is_kept(name, kept)
        total += _int8(tensor.shape) if quantized else _FLOAT * tensor.numel
    return total


def _is_kept(name: str, kept: Collection[str]) -> bool:
    return any(fnmatchcase(f"vision.{name}", pattern) for pattern in kept)


def _is_product(name: str, tensor: LazyTensor) -> bool:
    """The weight of a linear layer or of a convolution that is neither depthwise, nor a gate (timm's ``se``), nor the
    first, of three colours."""
    shape = tensor.shape
    is_convolution = len(shape) == 4 and shape[1] not in (1, _COLOURS) and ".se." not in name
    return name.endswith(".weight") and not name.endswith("embedding.weight") and (len(shape) == 2 or is_convolution)


def _int8(shape: tuple[int, ...]) -> int:
    return prod(shape) + shape[0] * (_SCALE + _ZERO_POINT)


def _fused(tensors: Iterable[tuple[str, LazyTensor]], checkpoint: Checkpoint, settings: Onnx) -> int:
    spec = checkpoint.spec.language
    total = spec.max_positions * spec.head_dim * _FLOAT
    for name, tensor in tensors:
        if len(tensor.shape) < 2:
            total += _FLOAT * tensor.numel
            continue
        if settings.decoder == "fp16":
            total += _HALF * tensor.numel
            continue
        bits = settings.head_bits if name == "lm_head.weight" else 4
        count = -(-tensor.columns // settings.block)
        total += tensor.shape[0] * count * (settings.block * bits // 8 + _SCALE)
    return total
