"""A decoder of Llama's kind in ONNX Runtime's fused operators: weights of 4 bits in blocks or of float16, grouped-query
attention with its cache and rotary embedding inside. It is built, not traced: no exporter emits these operators.

The contract is that of the traced decoder, but for ``position_ids``: positions follow from the attention mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import tape

from vlmexport.artifact.onnx.build.half_weights import half_weight
from vlmexport.artifact.onnx.passes import kept_rows
from vlmexport.artifact.onnx.passes.attach_weights import find, read, read_raw
from vlmexport.artifact.onnx.trace.components import OPSET
from vlmexport.calibrate.hessians import Hessians
from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.model import plugins
from vlmexport.quantize import blocks, gptq
from vlmexport.quantize.blocks import F32
from vlmexport.source.checkpoint import Checkpoint

_MS = "com.microsoft"


@dataclass(frozen=True)
class Weights:
    """How weights are held: ``bits`` and ``head_bits`` 4 or 8, ``block`` values to a scale; or 16, which is float16.

    ``accuracy`` is MatMulNBits' level: 4 takes int8 activations, which is what its fast kernels do, 0 takes float32.
    """

    block: int
    bits: int = 4
    head_bits: int = 8
    accuracy: int = 4


HALF = Weights(block=1, bits=16, head_bits=16)
"""Float16: no blocks, no scales."""


@dataclass(frozen=True)
class Rounding:
    """What 4-bit levels are chosen by, by layer path: Hessians for GPTQ, else f32 [columns] mean x² of a layer's input
    to search scales with. A layer that neither knows is rounded to nearest."""

    importance: Mapping[str, F32] = field(default_factory=dict)
    hessians: Hessians = field(default_factory=Hessians)


NEAREST = Rounding()


def build(checkpoint: Checkpoint, weights: Weights, rounding: Rounding = NEAREST) -> ir.Model:
    """The decoder of a checkpoint; its weights are read and quantized when they are written.

    Raises:
        Unsupported: neither a Llama nor like one.
        CheckpointError: a tensor is missing.
    """
    plugins.check_fused(checkpoint.spec.language)
    return _Builder(checkpoint, weights, rounding).model()


class _Builder:
    def __init__(self, checkpoint: Checkpoint, weights: Weights, rounding: Rounding) -> None:
        self.checkpoint, self.spec, self.weights = checkpoint, checkpoint.spec.language, weights
        self.rounding = rounding
        self.op = tape.Tape()
        self.initializers: list[ir.Value] = []
        self._scales: list[ir.Value] = []

    def model(self) -> ir.Model:
        """The whole graph."""
        spec = self.spec
        embeds = _value("inputs_embeds", ir.DataType.FLOAT, ("batch_size", "sequence_length", spec.hidden_size))
        mask = _value("attention_mask", ir.DataType.INT64, ("batch_size", "total_sequence_length"))
        inputs, outputs = [embeds, mask], []
        shared = [*self._lengths(mask), *self._rotary()]
        hidden, skip = embeds, None
        for layer in range(spec.num_layers):
            names = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
            past = [_value(name, ir.DataType.FLOAT, self._cache("past_sequence_length")) for name in names]
            inputs += past
            hidden, skip, present = self._layer(layer, hidden, skip, past, shared)
            outputs += present
            self._end_layer()
        final, _ = self._norm("language.model.norm", hidden, skip)
        logits = self._product(["language.lm_head"], final, self.weights.head_bits)
        self._end_layer()
        _set(logits, "logits", ("batch_size", kept_rows.ROWS, spec.vocab_size))
        graph = ir.Graph(
            inputs, [logits, *outputs], nodes=self.op.nodes, initializers=self.initializers,
            opset_imports={"": OPSET, _MS: 1}, name="graph",
        )  # fmt: skip
        model = ir.Model(graph, ir_version=10, producer_name="vlmexport")
        kept_rows.add_input(model, final)
        return model

    def _layer(
        self, layer: int, hidden: ir.Value, skip: ir.Value | None, past: Sequence[ir.Value], shared: Sequence[ir.Value]
    ) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
        """Pre-norm attention and SwiGLU; the residual sum is made by the norm that follows."""
        spec, path = self.spec, f"language.model.layers.{layer}"
        x, stream = self._norm(f"{path}.input_layernorm", hidden, skip)
        packed = self._product([f"{path}.self_attn.{name}_proj" for name in "qkv"], x, self.weights.bits)
        attended, *present = self.op.op_multi_out(
            "GroupQueryAttention", [*self._heads(f"{path}.self_attn", packed), *past, *shared],
            {"num_heads": spec.num_heads, "kv_num_heads": spec.num_kv_heads, "scale": spec.head_dim**-0.5,
             "do_rotary": 1, "rotary_interleaved": 0},
            domain=_MS, num_outputs=3, name=f"{path}.self_attn",
        )  # fmt: skip
        for part, value in zip(("key", "value"), present, strict=True):
            _set(value, f"present.{layer}.{part}", self._cache("total_sequence_length"))
        attended = self._product([f"{path}.self_attn.o_proj"], attended, self.weights.bits)
        x, stream = self._norm(f"{path}.post_attention_layernorm", attended, stream)
        gate = self._product([f"{path}.mlp.gate_proj"], x, self.weights.bits)
        up = self._product([f"{path}.mlp.up_proj"], x, self.weights.bits)
        silu = self.op.op("QuickGelu", [gate], {"alpha": 1.0}, domain=_MS, name=f"{path}.mlp.act_fn")
        inner = self.op.op("Mul", [silu, up], name=f"{path}.mlp.gated")
        return self._product([f"{path}.mlp.down_proj"], inner, self.weights.bits), stream, list(present)

    def _heads(self, path: str, packed: ir.Value) -> list[ir.Value | None]:
        """Query, key and value; as one where they are not normed head by head."""
        if f"{path}.q_norm.weight".removeprefix("language.") not in self.checkpoint.tensors["language"]:
            return [packed, None, None]
        spec = self.spec
        widths = np.array([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], np.int64) * spec.head_dim
        sizes = self._constant(f"{path}.widths", widths)
        axis, name = {"axis": -1}, f"{path}.split"
        query, key, value = self.op.op_multi_out("Split", [packed, sizes], axis, num_outputs=3, name=name)
        return [self._head_norm(f"{path}.q_norm", query), self._head_norm(f"{path}.k_norm", key), value]

    def _head_norm(self, path: str, x: ir.Value) -> ir.Value:
        """RMSNorm of each head, which stand side by side."""
        apart, beside = (
            self._constant(f"{path}.{name}", np.array(shape, np.int64))
            for name, shape in (("apart", (0, 0, -1, self.spec.head_dim)), ("beside", (0, 0, -1)))
        )
        normed, _ = self._norm(path, self.op.op("Reshape", [x, apart], name=f"{path}.heads"), None)
        return self.op.op("Reshape", [normed, beside], name=f"{path}.joined")

    def _norm(self, path: str, x: ir.Value, skip: ir.Value | None) -> tuple[ir.Value, ir.Value]:
        """RMSNorm of x + skip, and that sum."""
        weight = self._float(f"{path}.weight")
        epsilon = {"epsilon": self.spec.rms_norm_eps}
        if skip is None:
            return self.op.op("SimplifiedLayerNormalization", [x, weight], epsilon | {"axis": -1}, name=path), x
        normed, *unused, total = self.op.op_multi_out(
            "SkipSimplifiedLayerNormalization", [x, skip, weight], epsilon, domain=_MS, num_outputs=4, name=path
        )
        for output in unused:
            output.name = ""
        return normed, total

    def _product(self, paths: list[str], x: ir.Value, bits: int) -> ir.Value:
        """x times the weights of linear layers, their outputs side by side."""
        sources = [find(self.checkpoint, f"{path}.weight") for path in paths]
        name = paths[0] if len(paths) == 1 else f"{paths[0].rpartition('.')[0]}.qkv_proj"
        if bits == 16:
            return self._with_bias(paths, self._half_product(name, sources, x))
        # Query, key and value read one input, so the first one's statistics are those of all.
        held = _Quantized(sources, paths[0], bits, self.weights.block, self.rounding if bits == 4 else NEAREST)
        levels, scales = held.levels(f"{name}.weight_int{bits}"), held.scales(f"{name}.scales")
        operands = [x, _initializer(levels), _initializer(scales)]
        self.initializers.append(operands[1])
        self._scales.append(operands[2])
        attributes = {
            "K": held.columns, "N": held.rows, "bits": bits, "block_size": self.weights.block,
            "accuracy_level": self.weights.accuracy,
        }  # fmt: skip
        return self._with_bias(paths, self.op.op("MatMulNBits", operands, attributes, domain=_MS, name=name))

    def _with_bias(self, paths: list[str], product: ir.Value) -> ir.Value:
        """A product and the biases of its layers, where the checkpoint has them."""
        held = self.checkpoint.tensors["language"]
        names = [name for path in paths if (name := f"{path}.bias").removeprefix("language.") in held]
        if not names:
            return product
        name = f"{paths[0] if len(paths) == 1 else paths[0].rpartition('.')[0]}.bias"
        bias = self._constant(name, np.concatenate([read(find(self.checkpoint, name)) for name in names]))
        return self.op.op("Add", [product, bias], name=f"{name}.add")

    def _half_product(self, name: str, sources: list[LazyTensor], x: ir.Value) -> ir.Value:
        """x times float16 weights, in float32. ONNX Runtime widens them once, when it opens the graph; what goes into a
        product is not rounded, so that outliers cannot leave float16's range."""
        self.initializers.append(_initializer(half_weight(sources, f"{name}.weight_fp16")))
        to = {"to": ir.DataType.FLOAT.value}
        weight = self.op.op("Cast", self.initializers[-1:], to, name=f"{name}.weight")
        return self.op.op("MatMul", [x, weight], name=name)

    def _end_layer(self) -> None:
        """Scales follow the weights of their layer: so two threads that write in order do not wait for one weight."""
        self.initializers += self._scales
        self._scales = []

    def _lengths(self, mask: ir.Value) -> list[ir.Value]:
        """i32 [batch] last position of each sequence, and i32 total length."""
        one = self._constant("one", np.array([1], np.int64))
        index = self._constant("second", np.array(1, np.int64))
        last = self.op.op(
            "Sub", [self.op.op("ReduceSum", [mask, one], {"keepdims": 0}, name="count"), one], name="last"
        )
        total = self.op.op("Gather", [self.op.op("Shape", [mask], name="sizes"), index], {"axis": 0}, name="total")
        to = {"to": ir.DataType.INT32.value}
        return [self.op.op("Cast", [value], to, name=f"{n}.int32") for n, value in (("last", last), ("total", total))]

    def _rotary(self) -> list[ir.Value]:
        """f32 [positions, head_dim / 2] cosines and sines."""
        angles = rotary_angles(self.spec)
        return [self._constant(f"rotary.{f.__name__}", f(angles).numpy()) for f in (torch.cos, torch.sin)]

    def _cache(self, length: str) -> tuple[str | int, ...]:
        """Shape of keys and values."""
        return "batch_size", self.spec.num_kv_heads, length, self.spec.head_dim

    def _float(self, name: str) -> ir.Value:
        return self._constant(name, read(find(self.checkpoint, name)))

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        self.initializers.append(_initializer(ir.tensor(array, name=name)))
        return self.initializers[-1]


class _Quantized:
    """Levels and scales of one weight: whichever is asked for first computes both, the other one takes what is left."""

    def __init__(self, sources: list[LazyTensor], path: str, bits: int, block: int, rounding: Rounding) -> None:
        self._sources, self._path, self._bits, self._block = sources, path, bits, block
        self._rounding = rounding
        self.rows, self.columns = sum(source.shape[0] for source in sources), sources[0].shape[1]
        self.blocks = -(-self.columns // block)
        self._left: dict[str, np.ndarray] = {}
        self._lock = Lock()

    def levels(self, name: str) -> ir.LazyTensor:
        """u8 [outputs, blocks, bytes]."""
        shape = ir.Shape((self.rows, self.blocks, self._block * self._bits // 8))
        return ir.LazyTensor(partial(self._take, "levels"), ir.DataType.UINT8, shape, name=name)

    def scales(self, name: str) -> ir.LazyTensor:
        """f32 [outputs, blocks]."""
        shape = ir.Shape((self.rows, self.blocks))
        return ir.LazyTensor(partial(self._take, "scales"), ir.DataType.FLOAT, shape, name=name)

    def _take(self, which: str) -> ir.TensorProtocol:
        with self._lock:
            if which not in self._left:
                self._compute()
            return ir.tensor(self._left.pop(which))

    def _compute(self) -> None:
        levels = np.empty((self.rows, self.blocks, self._block * self._bits // 8), np.uint8)
        scales, done = np.empty((self.rows, self.blocks), np.float32), 0
        importance, hessian = self._rounding.importance.get(self._path), self._rounding.hessians.of(self._path)
        for source in self._sources:
            part = slice(done, done + source.shape[0])
            if hessian is None:
                levels[part], scales[part] = blocks.quantize(
                    read_raw(source), source.dtype, self.columns, self._bits, self._block, importance
                )
            else:
                levels[part], scales[part] = gptq.quantize(read(source), hessian, self._block)
            done = part.stop
        self._left = {"levels": levels, "scales": scales}


def rotary_angles(spec: LanguageSpec) -> torch.Tensor:
    """f32 [positions, head_dim / 2], as transformers computes them."""
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.int64).float() / spec.head_dim
    frequencies = 1.0 / spec.rope_theta**exponents
    if spec.rope_scaling:
        frequencies /= torch.tensor(spec.rope_scaling.divisors(spec.rope_theta, spec.head_dim))
    return torch.outer(torch.arange(spec.max_positions).float(), frequencies)


def _value(name: str, dtype: ir.DataType, shape: tuple[str | int, ...]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _initializer(tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]


def _set(value: ir.Value, name: str, shape: tuple[str | int, ...]) -> None:
    value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
