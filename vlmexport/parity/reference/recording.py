"""The float model's values in a file, to check bundles where the float model is not: recorded once, replayed anywhere.

A safetensors file: ``image.N.pixels.NAME``, ``.features.VIEW`` and ``.tokens``, ``question.N.logits`` (the rows that
predict the answer, in f32), and in its metadata what was asked and what was answered. It is written sample by sample,
so memory does not grow with their number.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vlmexport.calibrate import Sample
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.files import beside, whole
from vlmexport.parity.reference.same import other_model, other_samples
from vlmexport.parity.reference.values import Expected, ImageValues, QuestionValues
from vlmexport.parity.result import Inputs, ViewsResult
from vlmexport.processing.image import ProcessedImage
from vlmexport.processing.prompt import Prompt, Seen, Span, Views
from vlmexport.runtime.stages import F32, Features

_SCHEMA = 5
_KEY = "vlmexport"


class Recorder:
    """Passes on what another source tells, and writes it down; the file is there after ``finish``.

    Args:
        inputs: float model and samples, which a replay must match.
    """

    def __init__(self, source: Expected, path: Path, inputs: Inputs) -> None:
        self.name = source.name
        self._source, self._path = source, path
        self._about: dict[str, Any] = {
            "schema": _SCHEMA, "reference": source.name, "images": [], "views": [], "questions": [],
            "inputs": inputs.model_copy(update={"files": {}}).model_dump(),
        }  # fmt: skip
        self._header: dict[str, Any] = {}
        self._partial = beside(path)
        self._data = self._partial.open("wb")

    def image(self, sample: Sample) -> ImageValues:
        """The source's values."""
        values = self._source.image(sample)
        number = len(self._about["images"])
        self._about["images"].append(sample.image_id)
        for name, array in values.pixels.arrays.items():
            self._write(f"image.{number}.pixels.{name}", array)
        for view, rows in enumerate(values.features.views):
            self._write(f"image.{number}.features.{view}", rows)
        self._write(f"image.{number}.tokens", values.tokens)
        self._about["views"].append(asdict(values.pixels.views))
        return values

    def question(self, sample: Sample, seen: Sequence[Seen[F32]]) -> QuestionValues:
        """The source's values."""
        values = self._source.question(sample, seen)
        prompt = values.prompt
        self._write(f"question.{len(self._about['questions'])}.logits", values.logits)
        self._about["questions"].append(
            {
                "sample": sample.id, "prompt": asdict(prompt),
                "answer": values.answer, "margins": values.margins, "text": values.text,
            }
        )  # fmt: skip
        return values

    def _write(self, name: str, values: F32) -> None:
        begin = self._data.tell()
        self._data.write(values.astype("<f4", order="C", copy=False).tobytes())
        self._header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [begin, self._data.tell()]}

    def finish(self, views: ViewsResult | None = None) -> None:
        """Put the header before the data.

        Args:
            views: what the float model's budget of views costs by itself.
        """
        self._data.close()
        self._about["budget"] = views and views.model_dump()
        header = json.dumps({"__metadata__": {_KEY: json.dumps(self._about)}, **self._header}).encode()
        with whole(self._path) as temporary, temporary.open("wb") as file, self._partial.open("rb") as data:
            file.write(len(header).to_bytes(8, "little") + header)
            shutil.copyfileobj(data, file)
        self.close()

    def close(self) -> None:
        """Remove what is left of an unfinished file."""
        self._data.close()
        self._partial.unlink(missing_ok=True)


class Recording:
    """A file that a ``Recorder`` wrote.

    Raises:
        UsageError: it is missing, damaged, or no recording of this schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        cure = "record it again, with --record"
        if not path.is_file():
            raise UsageError(f"recording {path} does not exist", "make it where the float model is, with --record")
        try:
            self._file: Any = safe_open(path, "numpy")  # its methods have no types
            self._about: dict[str, Any] = json.loads(self._file.metadata()[_KEY])  # type: ignore[no-untyped-call]
            if self._about["schema"] != _SCHEMA:
                raise UsageError(f"{path} is a recording of schema {self._about['schema']}, not {_SCHEMA}", cure)
            self._inputs = Inputs.model_validate(self._about["inputs"])
            found = self._about.get("budget")
            self.views = None if found is None else ViewsResult.model_validate(found)
            self._images = {name: number for number, name in enumerate(self._about["images"])}
            self._questions = {entry["sample"]: number for number, entry in enumerate(self._about["questions"])}
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is no recording, or damaged ({error!r})", cure) from error
        self.name = f"{self._about['reference']}, recorded"

    def refuse_other(self, inputs: Inputs) -> None:
        """Raise where it is of another comparison than the one that is about to run.

        Raises:
            CheckpointError: it is of another float model, or of one configured otherwise.
            UsageError: it is of other samples.
        """
        model = other_model(self._inputs.model, "the recording", inputs.model, "the bundle")
        if model:
            raise CheckpointError(
                f"{self.path} was recorded from another model than this bundle was made from ({model})",
                "record the right one",
            )
        samples = other_samples(self._inputs, inputs)
        if samples:
            raise UsageError(
                f"{self.path} was recorded on {samples} ({len(self._questions)} samples)",
                "pass the same --data and --samples",
            )

    def image(self, sample: Sample) -> ImageValues:
        """As recorded."""
        number = self._images[sample.image_id]
        views = _views(**self._about["views"][number])
        names = (name.removeprefix(f"image.{number}.pixels.") for name in self._file.keys())  # noqa: SIM118
        arrays = {name: self._tensor(number, f"pixels.{name}") for name in names if "." not in name}
        features = tuple(self._tensor(number, f"features.{view}") for view in range(len(views.grids)))
        return ImageValues(ProcessedImage(arrays, views), Features(features), self._tensor(number, "tokens"))

    def _tensor(self, number: int, name: str) -> Any:
        return self._file.get_tensor(f"image.{number}.{name}")

    def question(self, sample: Sample, seen: Sequence[Seen[F32]]) -> QuestionValues:
        """As recorded; the tokens are those of the recording."""
        number = self._questions[sample.id]
        entry = self._about["questions"][number]
        logits = self._file.get_tensor(f"question.{number}.logits")
        return QuestionValues(_prompt(**entry["prompt"]), entry["answer"], entry["margins"], entry["text"], logits)


def _views(grids: list[list[int]], tiles: list[int]) -> Views:
    """As ``asdict`` and JSON have left it."""
    rows, columns = tiles
    return Views(tuple((height, width) for height, width in grids), (rows, columns))


def _prompt(text: str, ids: list[int], spans: list[dict[str, Any]]) -> Prompt:
    """The same of a prompt."""
    return Prompt(text, tuple(ids), tuple(Span(**span | {"grid": tuple(span["grid"])}) for span in spans))
