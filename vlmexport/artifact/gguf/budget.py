"""A GGUF under a budget: what each type would cost each tensor of the language model, and the best assignment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vlmexport.artifact.bundle import halves
from vlmexport.artifact.gguf.language import importance_names
from vlmexport.artifact.gguf.rows import ALIGNMENT, Entry
from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.checkpoint.tensors import LazyTensor, to_float32
from vlmexport.console import Console
from vlmexport.errors import UsageError
from vlmexport.quantize import ggml
from vlmexport.quantize.allocation import Choice, allocate, candidates, loss
from vlmexport.quantize.floats import all_finite, refuse_not_finite
from vlmexport.quantize.ggml import F32
from vlmexport.quantize.gguf_mix import quantizable
from vlmexport.threads import cores

if TYPE_CHECKING:
    from vlmexport.calibrate.sensitivity import Moments, Sensitivity

SAMPLED = 1 << 20
"""Values of a tensor that its losses are measured on: rows at equal distances."""


@dataclass(frozen=True)
class Budget:
    """What was chosen: ``types`` by GGUF name, and ``facts`` as the manifest tells them."""

    types: dict[str, str]
    facts: halves.Budget


def refuse_too_small(entries: list[Entry], given: Mapping[str, str], budget: int) -> None:
    """Raise where not even the smallest types fit.

    Raises:
        UsageError: says by how much.
    """
    smallest = sum(min(_bytes(entry, kind) for kind in _types(entry, given)) for entry in entries)
    missing = smallest - budget
    if missing > 0:
        raise UsageError(
            f"the smallest types of the language model are {missing / 1e6:.2f} MB larger than the budget",
            "raise --max-size or --bpw",
        )


def choose(
    spec: LanguageSpec,
    entries: list[Entry],
    given: Mapping[str, str],
    sensitivity: Sensitivity,
    budget: int,
    console: Console,
) -> Budget:
    """Measure every candidate on a part of each tensor's rows, and spend the budget where it gains most.

    Args:
        entries: of the language model, with the importance that they will be quantized with.
        given: GGUF name → type that was given by hand.
        budget: bytes of all tensors, norms included.

    Raises:
        UsageError: not even the smallest types fit.
        CheckpointError: a value is not finite.
    """
    refuse_too_small(entries, given, budget)
    moments = _moments(spec, sensitivity)
    free = [entry for entry in entries if quantizable(entry.name, entry.shape)]
    with console.progress("measuring types", len(free)) as advance, ThreadPoolExecutor(cores()) as pool:
        rows = list(pool.map(lambda entry: _choices(entry, _types(entry, given), moments[entry.name], advance), free))
    table = {entry.name: choices for entry, choices in zip(free, rows, strict=True)}
    rest = sum(_bytes(entry, entry.type) for entry in entries if entry.name not in table)
    found = allocate(table, budget - rest)
    assert found is not None
    divergence = sum(choice.loss for choice in found.values())
    console.note(f"predicted KL divergence {divergence:.2g} nats a token, mostly {_mostly(found)}")
    return Budget(
        {name: choice.type for name, choice in found.items()},
        halves.Budget(
            tensor_bytes=rest + sum(choice.bytes for choice in found.values()),
            predicted_kld=float(f"{divergence:.4g}"),
            tensors=[_line(name, found[name], choices) for name, choices in table.items()],
        ),
    )


def _mostly(found: Mapping[str, Choice]) -> str:
    """The types, by how many bytes they take."""
    sizes: Counter[str] = Counter()
    for choice in found.values():
        sizes[choice.type] += choice.bytes
    return ", ".join(kind for kind, _ in sizes.most_common(3))


def _moments(spec: LanguageSpec, sensitivity: Sensitivity) -> dict[str, list[Moments]]:
    """GGUF name → moments of its uses: a tied embedding has two."""
    from vlmexport.calibrate.sensitivity import EMBEDDING

    found: dict[str, list[Moments]] = {}
    for path, name in [*importance_names(spec).items(), (EMBEDDING, "token_embd.weight")]:
        moments = sensitivity.of(path)
        if moments is None:
            raise UsageError(f"sensitivities lack {path}", "they are of another model: calibrate this one")
        found.setdefault(name, []).append(moments)
    return found


def _choices(entry: Entry, types: tuple[str, ...], uses: list[Moments], advance: Callable[[], None]) -> list[Choice]:
    source, columns = entry.source, entry.columns
    assert isinstance(source, LazyTensor)
    step = max(1, -(-source.numel // SAMPLED))
    index = np.arange(0, entry.rows, step)
    values = _rows(source, index)
    choices = []
    for kind in types:
        data = ggml.quantize(values, kind, entry.importance)
        difference = ggml.dequantize(data, kind, columns) - values
        total = sum(loss(difference, moments.rows[index], moments.columns) for moments in uses)
        choices.append(Choice(kind, _bytes(entry, kind), total * entry.rows / len(index)))
    advance()
    return choices


def _rows(tensor: LazyTensor, index: npt.NDArray[np.int64]) -> F32:
    """f32 [rows, columns] of some rows."""
    whole = np.memmap(tensor.path, np.uint8, "r", tensor.offset, (tensor.nbytes,))
    raw = whole.reshape(tensor.numel // tensor.columns, -1)[index].reshape(-1)
    if not all_finite(raw, tensor.dtype):
        refuse_not_finite(tensor, whole)  # its first bad row, which need not be one of these
    return to_float32(raw, tensor.dtype).reshape(-1, tensor.columns)


def _types(entry: Entry, given: Mapping[str, str]) -> tuple[str, ...]:
    if not quantizable(entry.name, entry.shape):
        return (entry.type,)
    return (given[entry.name],) if entry.name in given else candidates(entry.columns)


def _bytes(entry: Entry, kind: str) -> int:
    size = entry.rows * ggml.row_bytes(kind, entry.columns)
    return size + -size % ALIGNMENT


def _line(name: str, chosen: Choice, choices: list[Choice]) -> halves.TensorChoice:
    tried = {choice.type: (choice.bytes, float(f"{choice.loss:.4g}")) for choice in choices}
    return halves.TensorChoice(tensor=name, type=chosen.type, bytes=chosen.bytes, tried=tried)
