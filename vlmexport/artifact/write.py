"""The writer of bundles: it joins a half that sees with one that decodes, whatever engine runs either, and writes
their files, the documents of clients, the manifest and the model card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from vlmexport.artifact.bundle.contents import calibration_of, list_files, source_of, tool_versions
from vlmexport.artifact.bundle.halves import (
    LABELS,
    LLAMA_CPP,
    ONNXRUNTIME,
    VISION,
    DecodingHalf,
    Role,
    SeeingHalf,
)
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.artifact.bundle.writing import Writing, Written
from vlmexport.console import Advance, Console, no_advance
from vlmexport.errors import VlmExportError
from vlmexport.measure import Measured, bytes_aside
from vlmexport.processing.javascript import MODULE
from vlmexport.recipe import Recipe
from vlmexport.source.checkpoint import Checkpoint

if TYPE_CHECKING:
    import onnx_ir as ir

Half = TypeVar("Half", SeeingHalf, DecodingHalf)
Graph = Callable[[str], "ir.Model"]

_JOINED = (
    "image_features of the vision encoder go into llama.cpp as embeddings (llama_batch.embd), between the tokens "
    "before and those after the image; no mmproj is needed"
)


class Writer:
    """What a recipe makes of a checkpoint. Nothing is read of its weights before ``write``.

    ``graph`` gives a part's clean float graph, by which int8 is decided; None where no half is ONNX.

    Args:
        scratch: a folder for what is traced, which must last as long as this object; None where nothing is written.

    Raises:
        Unsupported: a format cannot hold the model.
        UsageError: the recipe asks for what the model has not.
        MissingDependency: a package that writes the format is not installed.
    """

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, scratch: Path | None = None) -> None:
        self._checkpoint, self._recipe = checkpoint, recipe
        self._seeing, self._decoding, self.graph = _halves(checkpoint, recipe, scratch)

    @property
    def sizes(self) -> dict[Role, int]:
        """Bytes by role of the files with weights; at most, where a budget is spent."""
        return {**self._seeing.sizes, **self._decoding.sizes}

    @property
    def bytes_needed(self) -> int:
        """Bytes that are written on the way to a bundle, what is measured for it included."""
        return sum(self.sizes.values()) + bytes_aside(self._checkpoint, self._recipe)

    def refuse(self) -> None:
        """Say at once what cannot work, before anything long begins.

        Raises:
            Unsupported: the clients' files cannot hold the model, or llama.cpp tokenizes otherwise.
            UsageError: a budget is too small.
        """
        self._seeing.refuse()
        self._decoding.refuse()

    def write(self, measured: Measured, folder: Path, console: Console) -> Manifest:
        """Write a bundle to an empty folder.

        Raises:
            ParityFailed: a traced graph is not the float model.
            Unsupported: a part cannot be traced.
            CheckpointError: a weight is missing or not finite.
            UsageError: a budget is too small.
        """
        self._seeing.settle(measured, console)
        self._decoding.settle(measured, console)
        with ThreadPoolExecutor(2) as pool:
            source = pool.submit(source_of, self._checkpoint)
            seen, decoded = self._both(pool, measured, folder, console)
            self._documents(folder, seen.half, decoded.half, {**seen.hashes, **decoded.hashes})
            files = list_files(folder, {**seen.files, **decoded.files}, {**seen.hashes, **decoded.hashes})
            manifest = Manifest(
                source=source.result(),
                recipe=self._recipe,
                tools=tool_versions(*dict.fromkeys([*self._seeing.tools, *self._decoding.tools])),
                calibration=calibration_of(measured.statistics),
                files=files,
                tensors={**seen.tensors, **decoded.tensors},
                notes=[*self._decoding.notes, *self._seeing.notes, *_joint(seen.half, decoded.half)],
                seeing=seen.half,
                decoding=decoded.half,
            )
        write_manifest(folder, manifest)
        return manifest

    def _both(
        self, pool: ThreadPoolExecutor, measured: Measured, folder: Path, console: Console
    ) -> tuple[Written[SeeingHalf], Written[DecodingHalf]]:
        """Tracing holds the interpreter; what the other half does mostly does not, and runs beside it."""
        with console.bars({LABELS[role]: size for role, size in self.sizes.items()}) as bars:
            beside = _Beside(bars)
            decoding = pool.submit(beside.run, self._decoding, measured, folder)
            try:
                seen = beside.run(self._seeing, measured, folder)
            except _Stopped:
                decoding.result()  # raises what stopped it
                raise
            return seen, decoding.result()

    def _documents(self, folder: Path, seeing: SeeingHalf, decoding: DecodingHalf, written: Iterable[str]) -> None:
        """What the clients of graphs look for; llama.cpp finds all in its files."""
        if seeing.engine != ONNXRUNTIME:
            return
        from vlmexport.artifact.onnx import documents

        if decoding.engine == ONNXRUNTIME:
            found = documents.documents(self._checkpoint, self._recipe.onnx, written)
        else:
            found = documents.of_pictures(self._checkpoint)
        if self._recipe.target == "web":
            found[MODULE.name] = MODULE.read_text(encoding="utf-8")
        for name, text in found.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")


class _Stopped(VlmExportError):
    """The other half failed."""


class _Beside:
    """Halves that are written beside each other: an error or Ctrl-C in one ends the other after its next tensor."""

    def __init__(self, bars: Mapping[str, Advance]) -> None:
        self._bars, self._stop = bars, Event()

    def run(self, half: Writing[Half], measured: Measured, folder: Path) -> Written[Half]:
        """Write a half."""
        try:
            return half.write(measured, folder, self._progress)
        except BaseException:
            self._stop.set()
            raise

    def _progress(self, role: Role) -> Advance:
        bar = self._bars.get(LABELS[role], no_advance)

        def advance(amount: int = 1, /) -> None:
            if self._stop.is_set():
                raise _Stopped("stopped", "the other half of the export failed")
            bar(amount)

        return advance


def _halves(
    checkpoint: Checkpoint, recipe: Recipe, scratch: Path | None
) -> tuple[Writing[SeeingHalf], Writing[DecodingHalf], Graph | None]:
    """The halves of a recipe. What they need is imported for those alone that it asks for."""
    gguf = recipe.format == "gguf"
    if gguf:
        from vlmexport.artifact.gguf.decoding import GgufDecoding, refuse_language

        refuse_language(checkpoint)  # first: another vision encoder is no cure for it
        if recipe.gguf.vision == "mmproj":
            from vlmexport.artifact.gguf.seeing import GgufSeeing

            mmproj = GgufSeeing(checkpoint, recipe.gguf)
            return mmproj, GgufDecoding(checkpoint, recipe, _runs(mmproj)), None
    from vlmexport.artifact.onnx.float_graphs import FloatGraphs
    from vlmexport.artifact.onnx.seeing import OnnxSeeing

    graphs = FloatGraphs(checkpoint, recipe, scratch)
    seeing = OnnxSeeing(checkpoint, recipe.onnx, graphs)
    if gguf:
        return seeing, GgufDecoding(checkpoint, recipe, _runs(seeing)), graphs.model
    from vlmexport.artifact.onnx.decoding import OnnxDecoding

    return seeing, OnnxDecoding(checkpoint, recipe, graphs), graphs.model


def _runs(seeing: Writing[SeeingHalf]) -> int:
    """Bytes of what runs of it; a projector for parity does not."""
    return sum(size for role, size in seeing.sizes.items() if role in VISION)


def _joint(seeing: SeeingHalf, decoding: DecodingHalf) -> list[str]:
    return [_JOINED] if (seeing.engine, decoding.engine) == (ONNXRUNTIME, LLAMA_CPP) else []
