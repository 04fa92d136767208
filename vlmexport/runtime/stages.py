"""The five stages as an interface that every runtime implements: pixels → features → tokens → logits → answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from vlmexport.processing.prompt import Seen

if TYPE_CHECKING:  # runtimes run in workers, which start faster without torch
    from PIL import Image

    from vlmexport.processing.image import ProcessedImage
    from vlmexport.processing.messages import Messages
    from vlmexport.processing.prompt import Prompt, Views

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Token:
    """One greedily decoded token (or the class that is the answer), how far its logit stood above the second best, and
    the seconds of the runtime's own calls for it, without what stands between them and us (the float model's: None)."""

    id: int
    margin: float
    seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class Features:
    """Output of a vision encoder for one image.

    Attributes:
        views: [patches, vision width] of each view, which need not have as many patches.
        tokens: [visual tokens, hidden] of all views, where these features are from inside of a graph that goes on to
            them: what users run is that graph, and no projector by itself.
    """

    views: tuple[F32, ...]
    tokens: F32 | None = None

    @property
    def rows(self) -> F32:
        """[patches of all views, vision width]."""
        return self.views[0] if len(self.views) == 1 else np.concatenate(self.views)


class Seeing(Protocol):
    """Runs the first three stages of one bundle. Arrays are float32, in C order.

    Every method raises ``vlmexport.errors.VlmExportError`` with a cure when the runtime cannot run it.
    """

    name: str
    """Runtime and version, e.g. ``onnxruntime 1.31.1``."""

    notes: tuple[str, ...]
    """What the verdict must say about this run (e.g. kernels of another machine, the class-token repair)."""

    def pixels(self, image: Image.Image) -> ProcessedImage:
        """RGB image → its views and what else the encoder is told."""

    def features(self, image: ProcessedImage) -> Features:
        """What the encoder makes of each view."""

    def tokens(self, features: Features) -> F32:
        """[visual tokens of all views, hidden], in the order of the views."""

    def close(self) -> None:
        """Release the runtime (sessions, subprocesses)."""


class Decoding(Protocol):
    """Runs the other two, from visual tokens on."""

    name: str
    notes: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    """Each of them ends an answer."""

    context: int
    """Positions of the language model. A longer prompt is refused, an answer stops at its end (``Prompt.room``)."""

    classes: tuple[str, ...]
    """What an answer is one of: its only token is then an index of it, and none ends it. Empty where it is text."""

    def prompt(self, messages: Messages, images: Sequence[Views]) -> Prompt:
        """Token ids of a conversation, by this bundle's own tokenizer and template.

        Args:
            images: how the visual tokens of each of its images lie.
        """

    def logits(self, prompt: Prompt, tokens: Iterable[F32], num_logits_to_keep: int) -> F32:
        """Logits at the last positions of a prompt: [1, num_logits_to_keep, vocabulary]; of a classifier, at the one
        that it answers from: [1, 1, classes].

        Args:
            tokens: visual tokens [visual tokens, hidden] of each image.
            num_logits_to_keep: how many positions are wanted. No others are held in memory, which a large vocabulary
                would fill. All positions where it is 0.
        """

    def generate(
        self, prompt: Prompt, tokens: Iterable[F32], max_new_tokens: int, *, ignore_eos: bool = False
    ) -> Iterator[Token]:
        """Greedy decoding up to a token that ends the answer, which is included, or past it (to measure speed); a class
        is one token."""

    def steps(
        self, prompt: Prompt, tokens: Iterable[F32], max_new_tokens: int, *, ignore_eos: bool = False
    ) -> Iterator[tuple[Token, F32]]:
        """``generate``, each token with the logits that it was taken from: [1, vocabulary]."""

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, or of a class."""

    def close(self) -> None:
        """Release the runtime (sessions, subprocesses)."""


class Runtime(Seeing, Decoding, Protocol):
    """Runs the five stages of one bundle (or of the float model)."""


def see(runtime: Seeing, image: Image.Image) -> Seen[F32]:
    """The first three stages of an RGB image."""
    pixels = runtime.pixels(image)
    return Seen(runtime.tokens(runtime.features(pixels)), pixels.views)


@runtime_checkable
class RepairingSeeing(Protocol):
    """A half that mends what its library computes wrongly."""

    def stock(self, images: Iterable[Image.Image]) -> Seeing | None:
        """The same as the library computes these images by itself; None where that makes no difference."""


@runtime_checkable
class Repairing(Protocol):
    """A runtime that has such a half, or may have one."""

    def stock(self, images: Iterable[Image.Image]) -> Runtime | None:
        """The same bundle as the library computes these images by itself; None where that makes no difference."""
