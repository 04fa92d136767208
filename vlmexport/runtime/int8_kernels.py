"""Which int8 kernels a runtime has where it runs, and whether they saturate.

``vpmaddubsw`` of AVX2 (and of AVX-512 without VNNI) adds two products of U8 and S8 in 16 bits and stops at their ends.
VNNI, AMX and arm64 add them in 32 bits. ONNX Runtime multiplies S8 by S8 exactly on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Int8Kernels:
    """What multiplies the int8 layers of a bundle.

    Attributes:
        name: of the instructions, e.g. ``VNNI``.
        saturates: a sum of two products of U8 and S8 stops at the ends of 16 bits.
        layers: products of the bundle that can lose something by that; None where they were not counted.
    """

    name: str
    saturates: bool = False
    layers: int | None = None

    def __str__(self) -> str:
        if not self.saturates:
            return self.name
        if self.layers == 0:
            return f"{self.name} (no layer can saturate)"
        return f"{self.name}, which can saturate{'' if self.layers is None else f' in {self.layers} layers'}"

    def notes(self, is_bounded: bool) -> tuple[str, ...]:
        """What a verdict must say; nothing where nothing is lost.

        Args:
            is_bounded: the bundle was made for such kernels, too (``saturation = "avx2"``).
        """
        if not self.layers:
            return ()
        cure = "" if is_bounded else '; an export with `saturation = "avx2"` is made for both'
        return (
            f"the int8 kernels that this ran on ({self.name}) add two products of U8 and S8 in 16 bits and stop at the "
            f"ends, so {self.layers} layers of this bundle can give something else on VNNI and on arm64{cure}",
        )


@runtime_checkable
class Int8(Protocol):
    """A runtime that can name its int8 kernels."""

    def kernels(self) -> Int8Kernels | None:
        """Those that it has where it runs; None where it needs none."""


def kernels_of(runtime: object) -> Int8Kernels | None:
    """A runtime's, where it can name them."""
    return runtime.kernels() if isinstance(runtime, Int8) else None
