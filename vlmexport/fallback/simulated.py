"""The float model with some layers computed as their int8 products would be, in float arithmetic.

Inputs and weights are rounded to the very levels that the artifact holds; an integer product of them is exact, so what
differs from ONNX Runtime is the order of float sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from vlmexport.model import VLM
from vlmexport.quantize.choice import Choice
from vlmexport.quantize.ranges import Range, quantize_weight, weight_scales
from vlmexport.quantize.schemes import Scheme


@contextmanager
def int8_layers(
    vlm: VLM,
    choices: Mapping[str, Choice],
    paths: Iterable[str],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[None]:
    """Within, the layers of ``paths`` are int8 as ``choices`` say; their weights are put back at the end.

    Args:
        weights: what a file makes of them; rounded here where it is None.
    """
    held, handles = [], []
    try:
        for path in paths:
            layer = cast(nn.Linear | nn.Conv2d, vlm.get_submodule(path))
            held.append((layer, layer.weight.data))
            if weights is None:
                layer.weight.data = _weight(layer.weight.data, choices[path])
            else:
                layer.weight.data = weights[path].reshape(layer.weight.shape)
            handles.append(layer.register_forward_pre_hook(_input_of(choices[path])))
        yield
    finally:
        for layer, weight in held:
            layer.weight.data = weight
        for handle in handles:
            handle.remove()


def _weight(weight: torch.Tensor, choice: Choice) -> torch.Tensor:
    """A weight [outputs, ...] rounded: multiplied by the choice's scales first, divided by them afterwards."""
    scales = torch.ones(1) if choice.scales is None else torch.from_numpy(choice.scales).float()
    array = (weight.float() * scales if choice.scales is not None else weight.float()).numpy()
    steps = weight_scales(array, 0, choice.scheme)
    shape = [-1] + [1] * (array.ndim - 1)
    rounded = torch.from_numpy(quantize_weight(array, steps, 0, choice.scheme) * steps.reshape(shape))
    return rounded / scales if choice.scales is not None else rounded


def _input_of(choice: Choice) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    scales = None if choice.scales is None else torch.from_numpy(choice.scales).float()
    step, _ = choice.span.parameters(choice.scheme)

    def round_input(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0] if scales is None else inputs[0] / scales
        found = _rounded(x, choice.span, choice.scheme)
        if choice.terms == 2:
            found = found + _rounded(x - found, Range(-step / 2, step / 2), choice.scheme)
        return (found if scales is None else found * scales, *inputs[1:])

    return round_input


def _rounded(x: torch.Tensor, span: Range, scheme: Scheme) -> torch.Tensor:
    step, zero = span.parameters(scheme)
    levels = torch.clamp(torch.round(x / step) + zero, scheme.activation_min, scheme.activation_max)
    return (levels - zero) * step
