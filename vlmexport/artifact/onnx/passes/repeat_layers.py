"""Repeat a traced layer: tracing takes seconds a layer, and a transformer's layers differ in their weights alone.

Three layers are traced. The first may be special (what all layers share is computed in it); the second and the third
must be the same subgraph, node by node, and how the third is connected to the second tells how the next ones are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vlmexport.artifact.onnx.passes.clean import module_of
from vlmexport.errors import Unsupported

TRACED = 3
"""Layers to trace of each stack."""


@dataclass(frozen=True)
class _Wire:
    """Where an input of a repeated node comes from: ``inside`` its own copy or the copy ``before`` (node and output
    number), the ``weight`` or graph ``input`` of its layer, or the ``same`` value for all layers."""

    kind: str
    value: ir.Value | None = None
    node: int = 0
    output: int = 0


def repeat(model: ir.Model, prefix: str, total: int, weight: Callable[[str, ir.Value], ir.TensorProtocol]) -> None:
    """Extend a stack of ``TRACED`` layers to ``total``, in place; nothing to do where it has no more.

    Args:
        model: a clean graph (``artifact.graph.clean``) with ``TRACED`` layers.
        prefix: of module paths up to the layer's number, e.g. ``language.model.layers.``.
        weight: the tensor of a new layer's initializer: its name, and the third layer's value.

    Raises:
        Unsupported: the second and the third layer are not the same subgraph.
    """
    if total <= TRACED:
        return
    stack = _Stack(model, prefix)
    wires, last = stack.wires(), stack.layers[-1]
    exits = _exits(last)
    copies = [last]
    for number in range(TRACED, total):
        copies.append(stack.copy(number, wires, copies[-1], weight))
    for old, (index, output), users in exits:
        new = copies[-1][index].outputs[output]
        for user, place in users:
            user.replace_input_with(place, new)
        old.name, new.name = new.name, old.name
    model.graph.insert_after(last[-1], [node for copy in copies[1:] for node in copy])
    model.graph.sort()


_Use = tuple[ir.Node, int]
_Places = dict[int, tuple[int, int]]
"""id of a value → which node of the layer makes it, as which output."""


def _exits(nodes: list[ir.Node]) -> list[tuple[ir.Value, tuple[int, int], list[_Use]]]:
    """Values of a layer that nodes outside of it read: value, its place in the layer, who reads it."""
    own = {id(node) for node in nodes}
    found = []
    for index, node in enumerate(nodes):
        for output, value in enumerate(node.outputs):
            users = [(user, place) for user, place in value.uses() if id(user) not in own]
            if users:
                found.append((value, (index, output), users))
    return found


class _Stack:
    def __init__(self, model: ir.Model, prefix: str) -> None:
        self.graph, self.prefix = model.graph, prefix
        self.layers: list[list[ir.Node]] = [[] for _ in range(TRACED)]
        for node in model.graph:
            match = re.match(rf"{re.escape(prefix)}(\d+)(\.|$)", module_of(node))
            if match:
                self.layers[int(match[1])].append(node)

    def wires(self) -> list[list[_Wire | None]]:
        """How each node of the last layer is connected, by comparison with the layer before."""
        before, last = self.layers[-2], self.layers[-1]
        if not last or len(before) != len(last):
            raise self._differ(f"{len(before)} and {len(last)} nodes")
        known_before, known_last = _places(before), _places(last)
        wires = []
        for a, b in zip(before, last, strict=True):
            if not _alike(a, b):
                raise self._differ(f"{a.name} and {b.name}")
            pairs = zip(a.inputs, b.inputs, strict=True)
            wires.append([self._wire(x, y, known_before, known_last) for x, y in pairs])
        return wires

    def _wire(self, x: ir.Value | None, y: ir.Value | None, before: _Places, last: _Places) -> _Wire | None:
        if x is y:
            return _Wire("same", y) if y is not None else None
        if x is None or y is None:
            raise self._differ("an optional input")
        if id(y) in last and last[id(y)] == before.get(id(x)):
            return _Wire("inside", None, *last[id(y)])
        if id(y) in before and id(x) not in before:
            return _Wire("before", None, *before[id(y)])
        if _number(x.name or "", self.prefix, TRACED - 2, TRACED - 1) == y.name:
            if y.const_value is not None:
                return _Wire("weight", y)
            if y.is_graph_input():
                return _Wire("input", y)
        if _equal(x, y):
            return _Wire("same", y)
        raise self._differ(f"{x.name} and {y.name}")

    def copy(
        self, number: int, wires: list[list[_Wire | None]], before: list[ir.Node],
        weight: Callable[[str, ir.Value], ir.TensorProtocol],
    ) -> list[ir.Node]:  # fmt: skip
        """One more layer: its nodes, not yet in the graph."""
        nodes: list[ir.Node] = []
        for template, inputs in zip(self.layers[-1], wires, strict=True):
            values = [self._value(wire, number, nodes, before, weight) for wire in inputs]
            node = ir.Node(
                template.domain, template.op_type, values, list(template.attributes.values()),
                num_outputs=len(template.outputs), name=self._named(template.name, number),
            )  # fmt: skip
            node.meta.update(template.meta)
            for old, new in zip(template.outputs, node.outputs, strict=True):
                new.name, new.shape, new.type = self._named(old.name, number), old.shape, old.type
                if old.is_graph_output():
                    self.graph.outputs.append(new)
            nodes.append(node)
        return nodes

    def _value(
        self, wire: _Wire | None, number: int, nodes: list[ir.Node], before: list[ir.Node],
        weight: Callable[[str, ir.Value], ir.TensorProtocol],
    ) -> ir.Value | None:  # fmt: skip
        if wire is None:
            return None
        if wire.kind == "inside":
            return nodes[wire.node].outputs[wire.output]
        if wire.kind == "before":
            return before[wire.node].outputs[wire.output]
        old = wire.value
        assert old is not None
        if wire.kind == "same":
            return old
        name = self._named(old.name, number)
        if wire.kind == "input":
            new = ir.Value(name=name, shape=old.shape, type=old.type)
            self.graph.inputs.append(new)
            return new
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        new = ir.Value(name=name, shape=old.shape, type=old.type, const_value=weight(name, old))
        self.graph.register_initializer(new)
        return new

    def _named(self, name: str | None, number: int) -> str:
        """The name of something in the last traced layer, for layer ``number``."""
        old = name or ""
        new = _number(old, self.prefix, TRACED - 1, number)
        return f"{old}/{number}" if new == old else new

    def _differ(self, what: str) -> Unsupported:
        return Unsupported(
            f"the layers {self.prefix}* are not alike when traced ({what})",
            "report it with the checkpoint's config.json",
        )


def _number(name: str, prefix: str, old: int, new: int) -> str:
    """Another layer's number in a name: after the prefix, else between dots (``present.2.key``)."""
    if name.startswith(f"{prefix}{old}."):
        return name.replace(f"{prefix}{old}.", f"{prefix}{new}.", 1)
    return name.replace(f".{old}.", f".{new}.", 1)


def _places(nodes: list[ir.Node]) -> _Places:
    return {id(value): (i, j) for i, node in enumerate(nodes) for j, value in enumerate(node.outputs)}


def _alike(a: ir.Node, b: ir.Node) -> bool:
    left, right = (
        (n.op_type, n.domain, len(n.inputs), len(n.outputs), {key: str(v.value) for key, v in n.attributes.items()})
        for n in (a, b)
    )
    return left == right


def _equal(x: ir.Value, y: ir.Value) -> bool:
    if x.const_value is None or y.const_value is None:
        return False
    return np.array_equal(x.const_value.numpy(), y.const_value.numpy())
