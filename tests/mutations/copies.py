"""A copy of a bundle, damaged as a faulty exporter would damage it: the manifest knows the damaged files' hashes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from vlmexport.artifact.bundle.contents import sha256
from vlmexport.artifact.bundle.halves import Role
from vlmexport.artifact.bundle.manifest import File, read_manifest
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.calibrate import Sample
from vlmexport.console import QUIET
from vlmexport.parity import ParityResult, check
from vlmexport.parity.layers.bisect import bisect
from vlmexport.source.locate import open_model

Array = npt.NDArray[Any]


def link(source: str, destination: str) -> None:
    """A hard link where nothing objects to one: the onnx package reads no external data through it."""
    (shutil.copy if source.endswith("_data") else os.link)(source, destination)


class Mutant:
    """A bundle whose files can be changed one by one; those that are not are links to the right ones."""

    def __init__(self, right: Path, folder: Path, samples: Sequence[Sample], recording: Path) -> None:
        self.folder, self._samples, self._recording = folder, list(samples), recording
        shutil.copytree(right, folder, copy_function=link)
        for name in ("vlmexport.json", "README.md", "parity.json"):  # which a check replaces
            if (folder / name).exists():
                self._own(folder / name)

    def _own(self, path: Path) -> Path:
        """A file as a copy, which may be written to."""
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        return path

    def own(self, key: Role) -> Path:
        """A GGUF file as a copy, which may be written to, by its role."""
        manifest = read_manifest(self.folder)
        return self._own(self.folder / (manifest.seeing.files | manifest.decoding.files)[key])

    def path(self, graph: Role) -> Path:
        """A graph's file as a copy, by the manifest's name for it."""
        return self._own(self.folder / read_manifest(self.folder).graphs()[graph])

    def edit_json(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a JSON document in place."""
        path = self._own(self.folder / name)
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    def edit_graph(self, graph: Role, change: Callable[[onnx.ModelProto], object]) -> None:
        """Change a graph in place."""
        path = self.path(graph)
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    def edit_weight(self, graph: Role, name: str, change: Callable[[Array], Array]) -> None:
        """Replace an initializer by what ``change`` makes of it."""

        def replace(model: onnx.ModelProto) -> None:
            (found,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
            array = np.array(numpy_helper.to_array(found))
            found.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(array)).astype(array.dtype), name))

        self.edit_graph(graph, replace)

    def add(self, name: str, folder: Path) -> None:
        """Let the manifest know one more file."""
        manifest = read_manifest(self.folder)
        path = (folder / name).relative_to(self.folder).as_posix()
        files = [*manifest.files, File(path=path, bytes=0, sha256="")]
        write_manifest(self.folder, manifest.model_copy(update={"files": files}))

    def edit_tensors(self, key: Role, change: Callable[[str, Array], None]) -> None:
        """Change f32 tensors of a GGUF file in place.

        Args:
            key: the file's role.
        """
        for tensor in gguf.GGUFReader(self.own(key), "r+").tensors:
            change(tensor.name, tensor.data)

    def edit_fields(self, key: Role, **values: Any) -> None:
        """Change metadata of a GGUF file in place: numbers, and texts of the same length."""
        fields = gguf.GGUFReader(self.own(key), "r+").fields
        for name, value in values.items():
            part = fields[name].parts[fields[name].data[0]]
            part[:] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value

    def check(self, rehash: bool = True, **options: Any) -> ParityResult:
        """The verdict, once the manifest knows the files as they are."""
        if rehash:
            self.rehash()
        return check(self.folder, samples=self._samples, **{"replay": self._recording, **options})

    def first(self) -> dict[str, str]:
        """Stage → its first layer that diverges."""
        manifest = read_manifest(self.folder)
        return bisect(self.folder, manifest, open_model(manifest.source.path), self._samples[0], QUIET).first

    def rehash(self) -> None:
        """Let the manifest know the files as they are."""
        manifest = read_manifest(self.folder)
        files = [
            File(path=f.path, bytes=p.stat().st_size, sha256=sha256(p), role=f.role)
            for f, p in ((f, self.folder / f.path) for f in manifest.files)
        ]
        write_manifest(self.folder, manifest.model_copy(update={"files": files}))


def failed(result: ParityResult) -> set[tuple[str, str]]:
    """Stage and mode of every gate that fails."""
    return {(gate.stage, gate.mode) for gate in result.gates if not gate.passed}
