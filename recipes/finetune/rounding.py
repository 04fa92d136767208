"""How the weights and inputs of a bundle are rounded, read from the bundle itself, as functions of today's values.

Scales of weights follow the weights by the exporter's own formulas: at the first step they are the bundle's, at the
last those of the bundle that is exported then. Scales and zero points of inputs are the bundle's throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vlmexport.artifact.bundle.halves import LLAMA_CPP, ONNXRUNTIME, GraphReport
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.gguf import imatrix_reader
from vlmexport.artifact.gguf.decoding import IMATRIX
from vlmexport.artifact.gguf.file import library
from vlmexport.artifact.gguf.language import gguf_name
from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.errors import Unsupported
from vlmexport.model import plugins
from vlmexport.parity.layers.unfolded import Unfolded, unfolded
from vlmexport.quantize import blocks, ggml
from vlmexport.quantize.ranges import F32, Range, quantize_weight, weight_scales
from vlmexport.quantize.schemes import Scheme, find_scheme
from vlmexport.recipe import Onnx
from vlmexport.source.checkpoint import Checkpoint

Round = Callable[[torch.Tensor], torch.Tensor]
Rounds = tuple[dict[str, Round], dict[str, Round]]
"""Of weights by parameter path, and of inputs by module path."""


def of_bundle(bundle: Path, manifest: Manifest, checkpoint: Checkpoint) -> Rounds:
    """Everything that the bundle rounds in projector and language model.

    Raises:
        Unsupported: something is rounded in a way that no formula of the weights tells.
    """
    weights: dict[str, Round] = {}
    inputs: dict[str, Round] = {}
    onnx = manifest.recipe.onnx
    for role, file in manifest.graphs().items():
        report = manifest.reports[role]
        if role in ("projector", "decoder_model_merged") and report.precision == "int8":
            more = _int8(bundle / file, report, checkpoint, onnx)
            weights, inputs = weights | more[0], inputs | more[1]
    if manifest.decoding.engine == ONNXRUNTIME and onnx.decoder == "int4":
        weights |= _int4(checkpoint.spec.language, onnx)
    if checkpoint.spec.language.tie_word_embeddings:
        weights.pop("language.lm_head.weight", None)  # its table is the embedding's too, which stays float in ONNX
    if manifest.decoding.engine == LLAMA_CPP:
        weights |= _gguf(bundle, manifest.decoding.file("language"), checkpoint.spec.language)
    return weights, inputs


def _gguf(bundle: Path, name: str, spec: LanguageSpec) -> dict[str, Round]:
    """Tensor by tensor, with the bundle's importance matrix where it has one."""
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in library().GGUFReader(bundle / name).tensors}
    matrix = bundle / IMATRIX
    columns = imatrix_reader.read(matrix).columns if matrix.is_file() else {}
    found: dict[str, Round] = {}
    for canonical in plugins.language(spec).shapes(spec):
        tensor = gguf_name(spec, canonical)
        if types.get(tensor, "f32") != "f32":
            importance = columns[tensor].mean if tensor in columns else None
            found[f"language.{canonical}"] = partial(_by_libggml, types[tensor], importance)
    return found


def _by_libggml(kind: str, importance: F32 | None, weight: torch.Tensor) -> torch.Tensor:
    rows = weight.detach().numpy()
    data = ggml.quantize(rows, kind, importance)
    return torch.from_numpy(ggml.dequantize(data, kind, rows.shape[1]).reshape(rows.shape))


def _int4(spec: LanguageSpec, settings: Onnx) -> dict[str, Round]:
    """Blocks along the input, round to nearest."""
    if settings.rounding != "nearest":
        raise Unsupported(
            f"what {settings.rounding} makes of int4 weights depends on more than the weights",
            "export with VLMEXPORT_ONNX_ROUNDING=nearest, before the training and after it",
        )
    found: dict[str, Round] = {}
    for name, shape in plugins.language(spec).shapes(spec).items():
        if len(shape) == 2 and name not in plugins.language(spec).TABLES:
            bits = settings.head_bits if name.startswith("lm_head") else 4
            found[f"language.{name}"] = partial(_in_blocks, bits, settings.block)
    return found


def _in_blocks(bits: int, block: int, weight: torch.Tensor) -> torch.Tensor:
    raw, columns = weight.detach().flatten().numpy().view(np.uint8), weight.shape[1]
    return torch.from_numpy(blocks.dequantize(*blocks.quantize(raw, "f32", columns, bits, block), bits, columns))


def _int8(path: Path, report: GraphReport, checkpoint: Checkpoint, settings: Onnx) -> Rounds:
    plain, bounds = find_scheme(settings.scheme), report.pair_max or {}
    layers: dict[str, Unfolded] = {}
    for found in unfolded(path, set(report.smoothed or ()), checkpoint):
        if isinstance(found, str):
            raise Unsupported(f"{path} does not tell what {found} was before it was rounded", "list it in float_layers")
        layers[found.layer.path] = found
    weights: dict[str, Round] = {}
    inputs: dict[str, Round] = {}
    for name, found in layers.items():
        scheme, maker = plain.with_pairs(bounds.get(name)), found.layer.maker or ""
        scales = _scales(found, layers.get(maker), plain.with_pairs(bounds.get(maker)))
        weights[f"{name}.weight"] = partial(_by_scheme, scheme, _factor(found, scales, scheme))
        inputs[name] = partial(_input, found.layer.read, found.layer.terms, scales, scheme)
    return weights, inputs


def _scales(found: Unfolded, maker: Unfolded | None, scheme: Scheme) -> F32 | None:
    """f32 [inputs] that a layer's input is divided by; None where it is not.

    Where a linear layer makes the input, the steps of its int8 weight tell them: they are those of the float weight,
    divided by these scales row by row. ``unfolded`` has an estimate.
    """
    if found.scales is None or found.layer.divisor is not None or maker is None or not scheme.per_channel:
        return found.scales
    _, steps = maker.layer.weight()
    weight = maker.weight if maker.scales is None else maker.weight * maker.scales
    scales: F32 = weight_scales(weight, 0, scheme) / steps
    return scales


def _factor(found: Unfolded, scales: F32 | None, scheme: Scheme) -> F32:
    """What the float weight is multiplied by before it is rounded, broadcast to its shape. What rows are multiplied by
    makes no difference where each has a scale of its own."""
    if not scheme.per_channel:
        return _column(found.layer.weight()[1], found.step) / found.step
    columns = np.ones(found.weight.shape[1], np.float32) if scales is None else scales
    return columns.reshape(1, -1, *[1] * (found.weight.ndim - 2))


def _column(values: F32, like: F32) -> F32:
    """f32 [outputs] beside an array whose first axis they are; [1] of all of them stays so."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _by_scheme(scheme: Scheme, factor: F32, weight: torch.Tensor) -> torch.Tensor:
    matrix = weight.detach().numpy()
    # A convolution of one pixel is a matrix product in the graph.
    values = matrix.reshape(matrix.shape[: factor.ndim]) * factor
    scales = weight_scales(values, 0, scheme)
    levels = quantize_weight(values, scales, 0, scheme)
    return torch.from_numpy(levels * _column(scales, values) / factor).reshape(weight.shape)


def _input(
    parameters: tuple[float, int], terms: int, divisor: F32 | None, scheme: Scheme, x: torch.Tensor
) -> torch.Tensor:
    """As QuantizeLinear and DequantizeLinear do it; gradients pass where nothing is clipped."""
    scales = None if divisor is None else torch.from_numpy(divisor)
    x = x.float() if scales is None else x.float() / scales
    low, high = scheme.activation_min, scheme.activation_max
    found = torch.fake_quantize_per_tensor_affine(x, *parameters, low, high)
    if terms == 2:
        half = parameters[0] / 2
        rest = Range(-half, half).parameters(scheme)
        # The rest's gradient is that of x less that of what was rounded: only the first term's may pass.
        found = found + torch.fake_quantize_per_tensor_affine((x - found).detach(), *rest, low, high)
    return found if scales is None else found * scales
