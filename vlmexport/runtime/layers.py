"""A bundle's layers seen one by one, as an interface: what each gives when its component is fed by the float model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from vlmexport.artifact.onnx.read.layer_outputs import Boundary
from vlmexport.runtime.stages import F32

Component = Literal["vision", "projector", "language"]

NUM_LOGITS_TO_KEEP = 16
"""Positions at the end of a prompt whose logits are looked at: a row of a large vocabulary takes a megabyte."""


class Layers(Protocol):
    """Every method raises ``vlmexport.errors.VlmExportError`` where the runtime cannot show its layers."""

    def ends(self, component: Component) -> list[Boundary]:
        """Where its layers end, in the order in which they run; none where it cannot be seen into."""

    def values(self, component: Component, given: F32, ends: Sequence[Boundary]) -> list[F32]:
        """The values at these ends, for pixels [1, 3, height, width], features [1, patches, width] or embeddings
        [1, sequence, hidden].

        At the end of a language model they are of the last ``NUM_LOGITS_TO_KEEP`` positions alone where it computes no
        others."""

    def close(self) -> None:
        """Release the runtime."""
