"""Prompts for tests: a question about an image, and prompts of ids that a test chooses."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from vlmexport.checkpoint.spec import PromptSpec
from vlmexport.model.decoder_inputs import DecoderInputs
from vlmexport.processing.chat_template import ChatTemplate
from vlmexport.processing.messages import asked
from vlmexport.processing.prompt import Prompt, Span, Views, joined
from vlmexport.processing.prompt_builder import PromptBuilder
from vlmexport.processing.tokenizer import IMAGE_MARKER, Tokenizer
from vlmexport.runtime.stages import Decoding

VISUAL = 144
"""Visual tokens of an image of ``tiny``."""


def ask(side: Decoding, question: str, visual: int = VISUAL) -> Prompt:
    """A runtime's prompt of a question about one image of so many visual tokens."""
    return side.prompt(asked(question), [Views(((1, visual),))])


def tokenized(tokenizer: Tokenizer, template: PromptSpec, question: str, visual: int = VISUAL) -> Prompt:
    """A tokenizer's, of the conversation ``v1``."""
    source = ChatTemplate(template.chat_template(), IMAGE_MARKER, "v1")
    return PromptBuilder(source, tokenizer, None).prompt(asked(question), [Views(((1, visual),))])


def around(before: Iterable[int], after: Iterable[int], visual: int = VISUAL, text: str = "") -> Prompt:
    """Ids before and after one image."""
    return joined(text, [[*before], [*after]], [Views(((1, visual),))])


def with_image(prompt: Prompt, *tokens: int) -> list[int]:
    """The ids with these in place of each image's placeholders."""
    return [i for chunk in prompt.chunks() for i in (tokens if isinstance(chunk, Span) else chunk)]


def as_inputs(embeds: torch.Tensor) -> DecoderInputs:
    """Embeddings f32 [1, positions, hidden] of a prompt without images."""
    return DecoderInputs(embeds, torch.zeros(embeds.shape[1], dtype=torch.bool))


def texts(prompt: Prompt) -> tuple[tuple[int, ...], ...]:
    """The ids around the images of a prompt."""
    return tuple(chunk for chunk in prompt.chunks() if not isinstance(chunk, Span))
