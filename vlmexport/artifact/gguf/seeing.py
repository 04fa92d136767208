"""The seeing half of a GGUF bundle: an mmproj, for llama.cpp's libmtmd."""

from __future__ import annotations

from pathlib import Path

from vlmexport import families
from vlmexport.artifact.bundle.halves import LLAMA_CPP, Role, SeeingHalf
from vlmexport.artifact.bundle.writing import Progress, Written
from vlmexport.artifact.gguf import mmproj
from vlmexport.artifact.gguf.file import unlike
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.console import Console
from vlmexport.measure import Measured
from vlmexport.model import plugins
from vlmexport.processing.tokenizer import Tokenizer
from vlmexport.recipe import Gguf
from vlmexport.source.checkpoint import Checkpoint

_PADDING = (122, 116, 104)
_OTHER_COLOUR = f"libmtmd pads with {_PADDING}, CLIP's mean, this model was trained with another: wide images differ"
_NOT_PADDED = "libmtmd pads images to a square, this model was trained on centre crops: wide images differ"
_SPELLED = (
    "stock llama.cpp cannot show this model a picture: it needs one token for {}, which the vocabulary spells; "
    "vlmexport runs the bundle"
)


class GgufSeeing:
    """``mmproj-<name>-<TYPE>.gguf``.

    Raises:
        Unsupported: libmtmd cannot hold tower or projector, or would compute them wrongly. A hybrid can.
        MissingDependency: gguf or llama-cpp-python is not installed.
    """

    tools = ("gguf", "numpy")

    def __init__(self, checkpoint: Checkpoint, settings: Gguf) -> None:
        self._type = settings.mmproj_type
        self._file = mmproj.file(checkpoint, self._type)
        spec = checkpoint.spec
        said = families.gguf(checkpoint.family, spec)
        self.notes = [
            *plugins.gguf_tower(spec.vision).notes, *_pictures(spec.image_processor), *said.notes,
            *_marks(said.one_token, checkpoint.tokenizer),
        ]  # fmt: skip

    @property
    def sizes(self) -> dict[Role, int]:
        """Exact."""
        return {"mmproj": self._file.size}

    def refuse(self) -> None:
        """Making it did."""

    def settle(self, measured: Measured, console: Console) -> None:
        """Nothing hangs on measurements."""

    def write(self, measured: Measured, folder: Path, progress: Progress) -> Written[SeeingHalf]:
        """The file, and what the manifest says of it."""
        name = self._file.name
        digest = self._file.write(folder, progress("mmproj"))
        half = SeeingHalf(engine=LLAMA_CPP, precision=self._type, files={"mmproj": name})
        return Written(half, {name: "mmproj"}, {name: digest}, unlike(self._file, self._type))


def _pictures(pixels: ImageProcessorSpec) -> list[str]:
    """Where libmtmd makes other pixels of the square of a picture. Of other views, the family knows."""
    if pixels.mode != "square":
        return []
    if not pixels.do_pad:
        return [_NOT_PADDED]
    return [] if pixels.background == _PADDING else [_OTHER_COLOUR]


def _marks(texts: tuple[str, ...], tokenizer: Tokenizer) -> list[str]:
    """Marks that libmtmd cannot write with this vocabulary."""
    lacking = [text for text in texts if len(tokenizer.encode(text, special=True)) != 1]
    return [_SPELLED.format(", ".join(map(repr, lacking)))] if lacking else []
