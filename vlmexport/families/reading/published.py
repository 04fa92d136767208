"""What a family reads: the documents of a checkpoint folder, and the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import read_object, read_text, whole
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.errors import CheckpointError
from vlmexport.families.reading.image_processor import read_image_processor

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TowerFolder:
    """A vision tower in a folder of its own: ``config`` is in the terms of its class."""

    path: Path
    config: dict[str, Any]


@dataclass(frozen=True)
class Published:
    """``config`` is ``config.json``, ``shapes`` are those of the tensors, by component and canonical name. ``tower`` is
    the folder that the vision tower was taken from, where the checkpoint does not carry it; ``tokenizer`` is the one
    that its tokenizer's files are in, None where that is its own.
    """

    path: Path
    name: str
    config: dict[str, Any]
    shapes: Mapping[str, Shapes]
    tower: TowerFolder | None = None
    tokenizer: Path | None = None

    @property
    def file(self) -> Path:
        """``config.json``, for messages."""
        return self.path / "config.json"

    @cached_property
    def generation(self) -> dict[str, Any]:
        """``generation_config.json``; empty where there is none."""
        return read_object(self.path / "generation_config.json")

    def image_processor(self, side: int, pads: bool | None = None) -> ImageProcessorSpec:
        """The checkpoint's own, else that of its tower's folder, else CLIP's.

        Args:
            side: pixels along one side of the images that the tower takes.
            pads: whether pictures are padded to a square, else their middle is cut out; None where the processor says.

        Raises:
            CheckpointError: it is garbled, or makes images of another size.
            Unsupported: it makes pixels in a way that is not known.
        """
        found = read_image_processor(self.path) or (read_image_processor(self.tower.path) if self.tower else None)
        if found is None:
            return ImageProcessorSpec.square(side, bool(pads))
        if found.side != side:
            raise CheckpointError(
                f"{self.path}: the image processor makes {found.side} pixels, the tower takes {side}",
                "use the files that were published with it",
            )
        return found if pads is None else found.with_padding(pads)

    @cached_property
    def eos_of_tokenizer(self) -> tuple[int, ...]:
        """The id of the tokenizer's EOS, where its configuration lists that token, or ``tokenizer.json`` adds it."""
        folder = self.tokenizer or self.path
        config = read_object(folder / "tokenizer_config.json")
        eos = config.get("eos_token")
        text = eos.get("content") if isinstance(eos, dict) else eos
        listed = config.get("added_tokens_decoder")
        entries = list(listed.items()) if isinstance(listed, dict) else []
        if text and not entries:  # transformers 5 lists them nowhere else
            added = read_object(folder / "tokenizer.json").get("added_tokens")
            entries = [(str(one.get("id")), one) for one in added or () if isinstance(one, dict)]
        return tuple(
            int(i) for i, one in entries if isinstance(one, dict) and i.isdecimal() and one.get("content") == text
        )

    def added_token(self, text: str) -> int | None:
        """The id of a token that the tokenizer's files add to its vocabulary; None where none of them names it."""
        folder = self.tokenizer or self.path
        listed = read_object(folder / "tokenizer_config.json").get("added_tokens_decoder")
        entries = list(listed.items()) if isinstance(listed, dict) else []
        added = read_object(folder / "tokenizer.json").get("added_tokens")
        entries += [(str(one.get("id")), one) for one in added or () if isinstance(one, dict)]
        entries += [(str(i), {"content": one}) for one, i in read_object(folder / "added_tokens.json").items()]
        found = (i for i, one in entries if isinstance(one, dict) and one.get("content") == text and i.isdecimal())
        return next(map(int, found), None)

    @cached_property
    def chat_template(self) -> str:
        """The checkpoint's own template, from whichever file holds it; empty where none does.

        Raises:
            CheckpointError: it is no text.
        """
        if (self.path / "chat_template.jinja").is_file():
            return read_text(self.path / "chat_template.jinja")
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            found = read_object(self.path / name).get("chat_template")
            if isinstance(found, list):  # several by name
                named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
                found = named.get("default")
            if found is not None and not isinstance(found, str):
                raise CheckpointError(f"{self.path / name}: chat_template is no text", "use the published file")
            if found:
                return found
        return ""

    def of_tower(self, own: dict[str, Any]) -> tuple[dict[str, Any], Path]:
        """What is said of the tower, and the file that says so.

        Args:
            own: the checkpoint's own section; a tower in its own folder is told by that folder's config.
        """
        return (own, self.file) if self.tower is None else (self.tower.config, self.tower.path / "config.json")


def token_id(text: Mapping[str, Any], key: str, default: int, path: Path) -> int:
    """A token id; the first where a config lists several, the default where it is absent or null.

    Raises:
        CheckpointError: it is no number.
    """
    value = text.get(key)
    first = value[0] if isinstance(value, list) and value else value
    try:
        return whole({key: first}, key, default)
    except TypeError as error:
        raise CheckpointError(f"{path} garbles {error}", "use the published config.json") from error


def stop_ids(text: Mapping[str, Any], published: Published, default: int | None = 2) -> tuple[int, ...]:
    """Every token that ends an answer: those of the config, of the generation config, and the tokenizer's EOS, which a
    chat template ends its turns with.

    Args:
        text: the part of the config that names it.
        default: the first where the config names none; where it is None, the first that is named elsewhere.

    Raises:
        CheckpointError: one is no number, or there is none.
    """
    named = text.get("eos_token_id") not in (None, [])
    found = [] if default is None and not named else [token_id(text, "eos_token_id", default or 0, published.file)]
    generation = published.path / "generation_config.json"
    for values, file in ((text, published.file), (published.generation, generation)):
        value = values.get("eos_token_id")
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                found.append(token_id({"eos_token_id": one}, "eos_token_id", 0, file))
    found += published.eos_of_tokenizer
    if not found:
        raise CheckpointError(
            f"{published.path} names no token that ends an answer",
            "copy generation_config.json from where it is published",
        )
    return tuple(dict.fromkeys(found))


def pad_id(text: Mapping[str, Any]) -> int | None:
    """The token that fills a batch, where there is one."""
    value = text.get("pad_token_id")
    return value if isinstance(value, int) else None


def stored_type(text: Mapping[str, Any]) -> str:
    """The type that weights are said to be stored in."""
    return str(text.get("torch_dtype") or text.get("dtype") or "float16")
