"""ONNX bundles of the tiny checkpoint that several tests share, exported once a session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from tests.checkpoints import tiny_spec, write_checkpoint
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.onnx.session import empty_cache, open_session, rows_to_keep, run
from vlmexport.calibrate import Sample, Statistics, collect
from vlmexport.model import load
from vlmexport.pipeline import export_checkpoint
from vlmexport.recipe import Recipe, parse
from vlmexport.runtime.joined import Joined, join
from vlmexport.runtime.ort.halves import OrtHalves
from vlmexport.runtime.ort.int8_kernels import kernels_here
from vlmexport.runtime.ort.sessions import LocalSessions
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

Bundles = Callable[[str], Path]

SHORT = 6
"""Tokens of an answer."""


def picture(seed: int, size: tuple[int, int] = (300, 220)) -> Image.Image:
    """Coloured blobs: a few random pixels, enlarged."""
    pixels = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def sample(seed: int) -> Sample:
    """One picture with a question."""
    return Sample(f"{seed}", f"{seed}", "what is the image ?", lambda: picture(seed), answer="a chat")


def recipe(precision: str, scheme: str = "fbgemm", **onnx: object) -> Recipe:
    """A recipe with one precision for everything."""
    target = {"fbgemm": "x86", "qnnpack": "arm64"}.get(scheme, "any") if precision == "int8" else "any"
    settings = {"vision": precision, "decoder": precision, "scheme": scheme} | onnx
    return parse({"name": f"onnx-{precision}-{scheme}", "target": target, "onnx": settings}, "test")


class ExactSessions(LocalSessions):
    """Int8 products as kernels compute them that add in 32 bits, whatever this machine's do."""

    def open(self, name: str, path: Path, threads: int, graph: bytes | None) -> None:
        self._open[name] = open_session(path, threads, graph, exact=kernels_here().saturates)


def open_exact(bundle: Path) -> Joined:
    """A bundle on them."""
    return join(OrtHalves(bundle, read_manifest(bundle), sessions=ExactSessions()))


def through_the_cache(path: Path, embeds: torch.Tensor, ends: Sequence[int]) -> np.ndarray:
    """Logits of a decoder's graph, given a prompt in pieces that end there."""
    session = open_session(path)
    cache, parts = empty_cache(session), []
    for start, stop in pairwise((0, *ends)):
        mask = np.ones((1, stop), np.int64)
        given = {"inputs_embeds": embeds[:, start:stop].numpy(), "attention_mask": mask}
        outputs = run(session, given | rows_to_keep(session, 0) | cache)
        parts.append(outputs.pop("logits"))
        cache = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
    return np.concatenate(parts, 1)


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny random MobileVLM V2 with one decoder layer, because tracing takes its time layer by layer."""
    folder = tmp_path_factory.mktemp("short") / "short"
    return open_checkpoint(write_checkpoint(folder, tiny_spec("ldpnetv2", num_layers=1)))


@pytest.fixture(scope="session")
def short_statistics(short: Checkpoint) -> Statistics:
    """Of four pictures."""
    return collect(load(short), short.prompts, [sample(seed) for seed in range(4)])


@pytest.fixture(scope="session")
def onnx_bundle(short: Checkpoint, short_statistics: Statistics, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Bundles by name: ``fp32``, ``int8``, ``again``, a second ``int8`` of graphs traced anew, ``int4`` and ``fp16``
    with a float tower.

    Workers of pytest-xdist share them: the first that needs one exports it.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "onnx"
    root.mkdir(exist_ok=True)

    @cache
    def bundle(name: str) -> Path:
        with FileLock(root / f"{name}.lock"):
            return root / name if (root / name).exists() else export_bundle(name)

    def export_bundle(name: str) -> Path:
        precision = "int8" if name in ("int8", "again") else "fp32"
        chosen = recipe(precision, decoder=name if name in ("int4", "fp16") else precision)
        with pytest.MonkeyPatch.context() as patch:
            if name == "again":
                patch.setenv("VLMEXPORT_CACHE", str(root / "cache"))
            export_checkpoint(short, chosen, root / name, statistics=short_statistics)
        return root / name

    return bundle


@pytest.fixture(scope="module")
def short_answers() -> Iterator[None]:
    """Six random tokens say what 64 say, in a tenth of the time. Trained models end their answers sooner."""
    from vlmexport.parity.compare import one_runtime
    from vlmexport.parity.reference import values

    with pytest.MonkeyPatch.context() as patch:
        for module in (values, one_runtime):
            patch.setattr(module, "MAX_NEW_TOKENS", SHORT)
        yield
