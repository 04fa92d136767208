"""What layers of a running ggml graph give, inside of the worker: the products by weights of given names."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmexport.runtime.llamacpp.worker.tensor import Node
from vlmexport.runtime.stages import F32


class Watch:
    """Keeps the values of ``MUL_MAT`` nodes by the weight's name.

    Args:
        names: of weights, as in the file.
    """

    def __init__(self, names: list[str]) -> None:
        self._names = frozenset(names)
        self._found: dict[str, list[F32]] = {}
        self._error: BaseException | None = None
        self._known = False

    def evaluate(self, address: int, ask: bool) -> bool:
        """llama.cpp's callback: asked about each node before it is computed, and shown those that were wanted."""
        try:
            if self._error is not None:
                return False
            node = Node(address)
            if not self._known:
                node.check_layout()
                self._known = True
            if ask:
                return self.weight(node) is not None
            self.keep(node)
            return True
        except BaseException as error:  # an exception cannot pass through C
            self._error = error
            return False

    def weight(self, node: Node) -> str | None:
        """The weight that a node multiplies by, where it is one of these."""
        if node.op != "MUL_MAT":
            return None
        return next((source.name for source in node.inputs if source.name in self._names), None)

    def keep(self, node: Node) -> None:
        """A node has been computed: f32 [..., rows, outputs]; batches follow each other."""
        name = self.weight(node)
        if name is not None:
            self._found.setdefault(name, []).append(node.read(np.float32))

    def values(self, names: list[str]) -> list[F32]:
        """Of these weights; empty arrays of those that the graph does not multiply by.

        Raises:
            Unsupported: a llama.cpp whose tensors are laid out otherwise.
        """
        if self._error is not None:
            raise self._error
        nothing: list[Any] = [np.empty(0, np.float32)]
        return [np.concatenate(self._found.get(name, nothing), -2 if name in self._found else 0) for name in names]
