"""What writes one half of a bundle, whatever its engine. ``artifact/write.py`` joins two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from vlmexport.artifact.bundle.halves import DecodingHalf, Role, SeeingHalf
from vlmexport.console import Advance, Console
from vlmexport.measure import Measured

Half_co = TypeVar("Half_co", SeeingHalf, DecodingHalf, covariant=True)
Progress = Callable[[Role], Advance]
"""What to call with the bytes that are written of a file with this role."""


@dataclass(frozen=True)
class Written(Generic[Half_co]):
    """A half as the manifest tells it; the role of each of its files by path; SHA-256 of those that were hashed while
    they were written; tensors or layers whose type is not the default."""

    half: Half_co
    files: Mapping[str, Role]
    hashes: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)


class Writing(Protocol[Half_co]):
    """One half of a bundle that is to be written. Making one refuses what needs no more than a look at the model."""

    @property
    def tools(self) -> Sequence[str]:
        """Packages that the bytes depend on."""

    @property
    def sizes(self) -> Mapping[Role, int]:
        """Bytes of its files by role, external data included; at most, where a budget is spent."""

    @property
    def notes(self) -> Sequence[str]:
        """What whoever runs it must know."""

    def refuse(self) -> None:
        """Say at once what cannot work, before anything long begins.

        Raises:
            Unsupported: its files, or what reads them, cannot hold the model.
            UsageError: the recipe asks for what cannot be.
        """

    def settle(self, measured: Measured, console: Console) -> None:
        """Decide what hung on measurements, in the thread that hears Ctrl-C."""

    def write(self, measured: Measured, folder: Path, progress: Progress) -> Written[Half_co]:
        """Write its files to a folder, beside the other half in another thread.

        Raises:
            ParityFailed: a traced graph is not the float model.
            Unsupported: a part cannot be traced.
            CheckpointError: a weight is missing or not finite.
        """
