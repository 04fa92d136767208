"""The components of a float model, each traced by itself to an ONNX graph, under the names that its clients look for.

Every graph is compared with the PyTorch module at once, on shapes that it was not traced with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import nn
from transformers import DynamicCache

from vlmexport.artifact.onnx.passes import kept_rows
from vlmexport.artifact.onnx.passes.clean import clean, names_modules, rename_dimensions
from vlmexport.artifact.onnx.session import FEATURES
from vlmexport.artifact.onnx.trace.silent import SILENT
from vlmexport.errors import Unsupported, first_line
from vlmexport.model import VLM, plugins

OPSET = 21
"""The newest that onnxruntime, onnxruntime-genai and transformers.js all take; Q/DQ of int16 and int4 begin here."""

"""Name of the value inside the vision graph that is the features stage."""

Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Traced:
    """A float graph, the module it came from, and inputs of other shapes than it was traced with."""

    name: str
    model: ir.Model
    module: nn.Module
    probes: tuple[Inputs, ...]
    tolerance: float = 1e-4
    """Norm of the difference over norm of the output that is float rounding; sums in another order stay below 1e-5 on
    real towers."""


class _Vision(nn.Module):
    """Tower and projector. The features leave as a second output so that they keep a name; it is dropped later."""

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.vision, self.projector = vlm.vision, vlm.projector
        self._features = vlm.features

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self._features(pixel_values)
        return self.projector(features).flatten(0, 1), features


class _Stacked(_Vision):
    """The same of views as a processor stacks them that cuts tiles."""

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(pixel_values.flatten(0, 1))


class _Projector(nn.Module):
    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.projector = vlm.projector

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.projector(features).flatten(0, 1))


class _Decoder(nn.Module):
    """The language model with its key/value cache as plain tensors, and a mask of its own."""

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.language = vlm.language

    def forward(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, past: list[Any],
        num_logits_to_keep: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        length, total = inputs_embeds.shape[1], attention_mask.shape[1]
        key = torch.arange(total)[None]
        query = torch.arange(length)[:, None] + (total - length)
        allowed = (key <= query)[None, None] & (attention_mask != 0)[:, None, None]
        mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        logits = self.language(
            inputs_embeds=inputs_embeds, attention_mask=mask, position_ids=position_ids, cache=cache,
            use_cache=True, logits_to_keep=0 if num_logits_to_keep is None else int(num_logits_to_keep),
        ).logits  # fmt: skip
        return (logits, *(part for layer in cache.layers for part in (layer.keys, layer.values)))


class _Classifier(nn.Module):
    """The language model that reads a prompt at once, with a mask of its own."""

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.language = vlm.language

    def forward(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        mask = torch.where(attention_mask != 0, 0.0, torch.finfo(torch.float32).min)[:, None, None]
        types = torch.zeros_like(position_ids)  # else transformers gathers these zeros from a buffer
        logits = self.language(
            inputs_embeds=inputs_embeds, attention_mask=mask, position_ids=position_ids, token_type_ids=types
        ).logits
        return cast(torch.Tensor, logits[:, None])


def trace_vision(vlm: VLM) -> Traced:
    """``pixel_values`` [num_images, 3, height, width] → ``image_features`` [num_image_tokens, hidden]; of tiles
    [batch_size, num_images, 3, height, width], as transformers' processor and transformers.js give them."""
    side = vlm.spec.vision.image_size
    random = _random(0)
    tiles = vlm.spec.image_processor.mode == "tiles"
    module, before = (_Stacked(vlm), (2,)) if tiles else (_Vision(vlm), ())
    axes = dict(enumerate(("batch_size", "num_images") if tiles else ("num_images",)))
    model = trace_module(module, (random(*before, 2, 3, side, side),), (axes,), ["pixel_values"],
                    ["image_features", FEATURES])  # fmt: skip
    model.graph.outputs.pop()
    _set_tokens(model, vlm)
    probe = random(*(1 for _ in before), 3 if tiles else 1, 3, side, side)
    return Traced("vision_encoder", model, module, ((probe,),), _tolerance(vlm))


def trace_projector(vlm: VLM) -> Traced:
    """``features`` [num_images, patches, vision width] → ``image_features`` [num_image_tokens, hidden]."""
    shape = (vlm.spec.projector.in_tokens, vlm.spec.projector.in_features)
    random = _random(1)
    module = _Projector(vlm)
    model = trace_module(module, (random(2, *shape),), ({0: "num_images"},), [FEATURES], ["image_features"])
    _set_tokens(model, vlm)
    return Traced("projector", model, module, ((random(1, *shape),), (random(3, *shape),)), _tolerance(vlm))


def _tolerance(vlm: VLM) -> float:
    """A projector that rounds says how far a value on the other side of a step takes its output."""
    return float(getattr(plugins.projector(vlm.spec.projector), "TOLERANCE", Traced.tolerance))


def trace_decoder(vlm: VLM) -> Traced:
    """Embeddings, mask, positions, key/value cache and ``num_logits_to_keep`` → ``logits`` and the longer cache; of a
    classifier, without the last two."""
    language = vlm.spec.language
    if not language.generates:
        return _trace_classifier(vlm)
    module = _Decoder(vlm)
    pairs = [(f"past_key_values.{i}.key", f"past_key_values.{i}.value") for i in range(language.num_layers)]
    names = ["inputs_embeds", "attention_mask", "position_ids", *(name for pair in pairs for name in pair)]
    outputs = ["logits", *(name.replace("past_key_values", "present") for pair in pairs for name in pair)]
    # One Dim for all layers: each size is then computed once, not layer by layer.
    cache = {0: "batch_size", 2: torch.export.Dim("past_sequence_length")}
    axes = (
        {0: "batch_size", 1: "sequence_length"}, {0: "batch_size", 1: "total_sequence_length"},
        {0: "batch_size", 1: "sequence_length"}, [(dict(cache), dict(cache)) for _ in pairs],
    )  # fmt: skip
    example, *probes = (_decoder_inputs(vlm, *sizes) for sizes in ((2, 3, 5), (1, 4, 0), (2, 4, 7), (2, 1, 7)))
    model = trace_module(module, example, axes, names, outputs)
    kept_rows.add_to_traced(model)
    heads = (language.num_kv_heads, "total_sequence_length", language.head_dim)
    shapes: dict[str, tuple[str | int, ...]] = dict.fromkeys(outputs[1:], ("batch_size", *heads))
    rename_dimensions(model, shapes)
    name_logits(model, language.vocab_size)
    kept = [(*probe, torch.tensor(count)) for probe, count in zip(probes, (0, 2, 1), strict=True)]
    return Traced("decoder_model_merged", model, module, tuple(kept))


def _trace_classifier(vlm: VLM) -> Traced:
    """``logits`` [batch_size, 1, classes] of prompts that are padded at the end."""
    module, axes = _Classifier(vlm), {0: "batch_size", 1: "sequence_length"}
    inputs = [_classifier_inputs(vlm, *sizes) for sizes in ((2, 5, 1), (1, 4, 0), (3, 7, 3))]
    names = ["inputs_embeds", "attention_mask", "position_ids"]
    model = trace_module(module, inputs[0], (dict(axes),) * len(names), names, ["logits"])
    rename_dimensions(model, {"logits": ("batch_size", 1, len(vlm.spec.language.classes))})
    return Traced("decoder_model_merged", model, module, tuple(inputs[1:]))


PARTS = {"vision": trace_vision, "projector": trace_projector, "language": trace_decoder}
"""What traces a part of ``VLM``; the tower's graph holds the projector too."""


def name_logits(model: ir.Model, vocabulary: int) -> None:
    """Set the shape that the output ``logits`` of a decoder shows."""
    rename_dimensions(model, {"logits": ("batch_size", kept_rows.ROWS, vocabulary)})


def _classifier_inputs(vlm: VLM, batch: int, length: int, padded: int) -> Inputs:
    """``padded`` positions at the end of the last prompt are none of it."""
    positions, mask = torch.arange(length)[None].repeat(batch, 1), torch.ones(batch, length, dtype=torch.long)
    mask[-1, length - padded :] = 0
    return _embeddings(vlm, _random(batch + length), batch, length), mask, positions


def _embeddings(vlm: VLM, random: Callable[..., torch.Tensor], batch: int, length: int) -> torch.Tensor:
    """As large as those of tokens."""
    scale = float(cast(nn.Embedding, vlm.language.get_input_embeddings()).weight.std())  # type: ignore[operator]
    return random(batch, length, vlm.spec.language.hidden_size) * scale


def _decoder_inputs(vlm: VLM, batch: int, length: int, past: int) -> Any:
    language = vlm.spec.language
    random = _random(batch + length + past)
    positions = torch.arange(past, past + length)[None].repeat(batch, 1)
    shape = (batch, language.num_kv_heads, past, language.head_dim)
    cache = [(random(*shape), random(*shape)) for _ in range(language.num_layers)]
    mask = torch.ones(batch, past + length, dtype=torch.long)
    mask[-1, : past // 2] = 0
    return _embeddings(vlm, random, batch, length), mask, positions, cache


def trace_module(module: nn.Module, inputs: Any, axes: Any, names: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """Trace a module, then name and clean its graph (``graph.clean``).

    Axis names that several axes share are not a conflict here; they are meant.

    Args:
        inputs: what the module is called with.
        axes: of every input, number → name of the axes that are not fixed.
        names, outputs: of the graph's inputs and outputs.

    Raises:
        Unsupported: the module cannot be traced.
    """
    try:
        with SILENT:
            program = torch.onnx.export(
                module.eval(), inputs, dynamo=True, dynamic_shapes=axes, input_names=names, output_names=outputs,
                opset_version=OPSET, verbose=False, optimize=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        raise Unsupported(
            f"{outputs[0]} cannot be traced to ONNX ({first_line(error)})", "export it to GGUF"
        ) from error
    assert program is not None
    parameters = set(module.state_dict())  # statistics of batch norms are weights too

    def should_fold(node: ir.Node) -> bool | None:
        """Constants of the graph, but nothing that depends on a weight: weights are put in later."""
        return False if any(value is not None and value.name in parameters for value in node.inputs) else None

    with SILENT, _batch_norms_kept(program.model.graph):
        optimizer.optimize_ir(program.model, should_fold=should_fold)
    if not names_modules(program.model):
        raise Unsupported(
            f"torch {torch.__version__} does not say which module a node of a graph comes from",
            "install the version that vlmexport names, or export to GGUF",
        )
    return clean(program.model)


@contextmanager
def _batch_norms_kept(graph: ir.Graph) -> Iterator[None]:
    """The optimiser folds batch norms into convolutions unless their weights are inputs: it would fold random ones."""
    norms = [node for node in graph if node.op_type == "BatchNormalization"]
    count = len(graph.inputs)
    graph.inputs.extend(value for node in norms for value in node.inputs[1:] if value is not None)
    try:
        yield
    finally:
        del graph.inputs[count:]


def _set_tokens(model: ir.Model, vlm: VLM) -> None:
    rename_dimensions(model, {"image_features": ("num_image_tokens", vlm.spec.language.hidden_size)})


def _random(seed: int) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)
