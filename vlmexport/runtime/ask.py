"""One question to a bundle or a float model, the answer piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vlmexport.artifact.bundle.staging import MANIFEST
from vlmexport.console import QUIET, Console
from vlmexport.processing.images import read_image
from vlmexport.processing.messages import asked
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.stages import Runtime, see


def ask(
    model: str,
    images: Path | Sequence[Path],
    question: str,
    max_new_tokens: int,
    vision_tower: str | None = None,
    console: Console = QUIET,
) -> Iterator[str]:
    """Greedy answer.

    Args:
        model: a bundle's folder, or a checkpoint (folder, Hub id, ``demo``).
        images: that the question is about, in their order; one file, or several.
        vision_tower: a CLIP folder, for a checkpoint that does not carry its tower.
        console: where downloads are told of.

    Yields:
        Text; joined it is the answer.

    Raises:
        UsageError: an image cannot be read, the model was not trained for so many, or it is neither.
    """
    files = [images] if isinstance(images, Path) else images
    pictures = [read_image(file) for file in files]
    is_bundle = (Path(model) / MANIFEST).is_file()
    runtime = open_runtime(Path(model)) if is_bundle else _float_model(model, vision_tower, console)
    try:
        seen = [see(runtime, picture) for picture in pictures]
        prompt = runtime.prompt(asked(question, len(seen)), [one.views for one in seen])
        tokens = [one.tokens for one in seen]
        ids: list[int] = []
        shown = ""
        for token in runtime.generate(prompt, tokens, max_new_tokens):
            if token.id in runtime.stop_token_ids and not runtime.classes:
                break
            ids.append(token.id)
            text = runtime.decode(ids)
            # A character of several byte tokens is incomplete until its last one.
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(shown) :]
                shown = text
    finally:
        runtime.close()


def _float_model(model: str, vision_tower: str | None, console: Console) -> Runtime:
    """Imported here: a bundle runs without PyTorch."""
    from vlmexport.runtime.reference import ReferenceRuntime
    from vlmexport.source.locate import open_model

    return ReferenceRuntime(open_model(model, vision_tower, console))
