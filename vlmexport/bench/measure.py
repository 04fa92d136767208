"""Answers and memory of one bundle, measured in this process: a fresh one each."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean

from PIL import Image

from vlmexport.artifact.bundle.manifest import Manifest, read_manifest
from vlmexport.bench.energy import open_meter
from vlmexport.bench.halves import decoder_alone, vision_alone
from vlmexport.errors import UsageError
from vlmexport.processing.messages import asked
from vlmexport.processing.prompt import Seen
from vlmexport.runtime.engines import find_engine
from vlmexport.runtime.int8_kernels import Int8Kernels, kernels_of
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.stages import F32, Runtime, see

WARM_ANSWERS = 3


@dataclass(frozen=True)
class Request:
    """What to ask. ``new_tokens`` (two at least) are decoded, whether the answer ends before or not; a class is one."""

    image: Image.Image
    question: str
    new_tokens: int


@dataclass
class Round:
    """The answers of one process, in seconds and joules; ``cold`` begins before the bundle is opened. There is no
    ``token`` where an answer is a class. ``decoder_…``: the runtime's own calls alone. ``views``: of the image."""

    runtime: str
    positions: int
    views: int
    cold: float
    image: list[float] = field(default_factory=list)
    prompt: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)
    decoder_prompt: list[float] = field(default_factory=list)
    decoder_token: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    kernels: Int8Kernels | None = None


def answers(bundle: Path, request: Request) -> Round:
    """One cold answer, then warm ones.

    Raises:
        VlmExportError: the bundle cannot be opened or run.
    """
    manifest, meter = read_manifest(bundle), open_meter()
    for half in (manifest.seeing, manifest.decoding):
        find_engine(half.engine).load()  # our packages take seconds to import, which the bundle does not cost
    start = time.perf_counter()
    runtime = open_runtime(bundle, manifest)
    try:
        opening = time.perf_counter() - start
        first = _answer(runtime, request)
        found = Round(runtime.name, first.positions, first.views, opening + first.image + first.prompt)
        for _ in range(WARM_ANSWERS):
            if meter:
                meter()
            answer = _answer(runtime, request)
            if meter:
                found.joules.append(meter())
            found.image.append(answer.image)
            found.prompt.append(answer.prompt)
            found.decoder_prompt.append(answer.decoder[0])
            if answer.later:
                found.token.append(mean(answer.later))
                found.decoder_token.append(mean(answer.decoder[1:]))
        found.kernels = kernels_of(runtime)
    finally:
        runtime.close()
    return found


@dataclass(frozen=True)
class _Answer:
    """Seconds of the image, of the prompt up to the first token, of each token after it, and of the runtime's own calls
    for each token; positions of the prompt, views of the image."""

    image: float
    prompt: float
    later: list[float]
    decoder: list[float]
    positions: int
    views: int


def _answer(runtime: Runtime, request: Request) -> _Answer:
    marks, decoder = [time.perf_counter()], []
    seen = see(runtime, request.image)
    marks.append(time.perf_counter())
    prompt = runtime.prompt(asked(request.question), [seen.views])
    for token in runtime.generate(prompt, [seen.tokens], request.new_tokens, ignore_eos=True):
        marks.append(time.perf_counter())
        decoder.append(token.seconds or 0.0)
    image, first, *later = (after - before for before, after in pairwise(marks))
    return _Answer(image, first, later, decoder, len(prompt.ids), len(seen.views.grids))


def vision_peak(bundle: Path, manifest: Manifest, request: Request) -> tuple[int | None, Seen[F32]]:
    """Peak bytes of tower and projector at work on one image, and what they saw."""
    with vision_alone(bundle, manifest) as (vision, worker):
        seen = see(vision, request.image)
        return worker.peak_bytes(), seen


def decoder_peak(bundle: Path, manifest: Manifest, request: Request, seen: Seen[F32]) -> int | None:
    """Peak bytes of the decoder at work on one answer.

    Raises:
        UsageError: prompt and answer are longer than the model's context.
    """
    context = manifest.source.spec.language.max_positions
    with decoder_alone(bundle, manifest) as (decoder, worker):
        prompt = decoder.prompt(asked(request.question), [seen.views])
        room = prompt.room(context, f"{bundle}: the prompt")
        if not decoder.classes and request.new_tokens > room:
            length = len(prompt.ids) + request.new_tokens
            raise UsageError(
                f"{bundle}: prompt and answer are {length} tokens, its context is {context}", "ask for fewer tokens"
            )
        for _ in decoder.generate(prompt, [seen.tokens], request.new_tokens, ignore_eos=True):
            pass
        return worker.peak_bytes()
