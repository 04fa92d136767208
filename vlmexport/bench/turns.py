"""``vlmexport bench``: bundles in turn, each time in a fresh process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

from PIL import Image

from vlmexport.artifact.bundle.halves import DECODER, VISION
from vlmexport.artifact.bundle.manifest import Manifest, read_manifest
from vlmexport.bench import measure
from vlmexport.bench.measure import Request, Round
from vlmexport.bench.result import BundleBench, Component, Spread
from vlmexport.console import QUIET, Console
from vlmexport.errors import VlmExportError
from vlmexport.threads import operator_threads

QUESTION = "What is in the picture?"
NEW_TOKENS = 64
ROUNDS = 3
_FILES = {"vision": VISION, "decoder": DECODER}
"""Roles of the files that an answer takes."""

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")


def bench(
    bundles: Sequence[Path],
    *,
    image: Image.Image | None = None,
    question: str | None = None,
    new_tokens: int = NEW_TOKENS,
    rounds: int = ROUNDS,
    console: Console = QUIET,
) -> list[BundleBench]:
    """Measure bundles side by side: round after round, and in each round one after the other.

    Each round of each bundle is a process of its own, so that none inherits the other's caches and memory.

    Args:
        image: RGB; a scene of the demo model where it is None. Its content has no effect on the times.
        question: ``QUESTION`` where it is None.
        new_tokens: to decode, at least two.

    Raises:
        UsageError: not a bundle, or the prompt and its answer are longer than the model's context.
        VlmExportError: a bundle cannot be run.
    """
    manifests = {bundle: read_manifest(bundle) for bundle in bundles}
    request = Request(image or _scene(), question or QUESTION, new_tokens)
    measured: dict[Path, list[Round]] = {bundle: [] for bundle in bundles}
    components: dict[Path, list[Component]] = {}
    with console.progress("measuring", len(measured) * (rounds + 1)) as advance:
        for bundle, manifest in manifests.items():
            components[bundle] = halves(bundle, manifest, request)
            advance()
        for _ in range(rounds):
            for bundle in measured:
                measured[bundle].append(_alone(measure.answers, bundle, request))
                advance()
    return [_result(bundle, manifests[bundle], components[bundle], found, new_tokens) for bundle, found in
            measured.items()]  # fmt: skip


def halves(bundle: Path, manifest: Manifest, request: Request) -> list[Component]:
    """Bytes and memory of vision and decoder, each in a worker of its own.

    Raises:
        UsageError: the prompt and its answer are longer than the model's context.
        VlmExportError: the bundle cannot be run.
    """
    vision, seen = measure.vision_peak(bundle, manifest, request)
    decoder = measure.decoder_peak(bundle, manifest, request, seen)
    peaks = {"vision": vision, "decoder": decoder}
    return [
        Component(
            name=name,
            bytes=manifest.size(_FILES[name]),
            peak_bytes=peak,
        )
        for name, peak in peaks.items()
    ]


def _alone(function: Callable[Arguments, Found], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Found:
    """Call a function in a process that does nothing else."""
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(function, *args, **kwargs).result()
    except BrokenProcessPool as error:
        raise VlmExportError(f"the process that ran {args[0]} died", "look whether memory was short") from error


def _result(
    bundle: Path, manifest: Manifest, components: list[Component], found: list[Round], new_tokens: int
) -> BundleBench:
    def spread(name: str) -> Spread:
        return Spread.of(list(chain.from_iterable(getattr(one, name) for one in found)))

    return BundleBench(
        bundle=bundle.resolve().name,
        kind=manifest.kind,
        recipe=manifest.recipe.name,
        runtime=found[0].runtime,
        kernels=found[0].kernels,
        threads=operator_threads(),
        positions=found[0].positions,
        views=found[0].views,
        new_tokens=new_tokens if found[0].token else 1,
        bytes=sum(file.bytes for file in manifest.files),
        components=components,
        cold=Spread.of([one.cold for one in found]),
        image=spread("image"),
        prompt=spread("prompt"),
        token=spread("token") if found[0].token else None,
        decoder_prompt=spread("decoder_prompt"),
        decoder_token=spread("decoder_token") if found[0].token else None,
        joules=spread("joules") if found[0].joules else None,
        parity=manifest.parity,
    )


def _scene() -> Image.Image:
    from vlmexport.demo.heldout import heldout_scenes
    from vlmexport.demo.paint import paint

    return paint(next(heldout_scenes(1)))
