"""Decoding step by step on ONNX Runtime: keys and values that grow, or stay in one place, or are none."""

from __future__ import annotations

import numpy as np
import onnxruntime

from vlmexport.artifact.onnx.session import empty_cache, rows_to_keep, run
from vlmexport.runtime.stages import F32

_PAST = "past_key_values"

_value = onnxruntime.OrtValue.ortvalue_from_numpy


def _kept(logits: F32, count: int) -> F32:
    """The last rows alone where a graph gives more: a view would keep all of them in memory."""
    return logits[:, -count:].copy() if 0 < count < logits.shape[1] else logits


class GrowingCache:
    """Keys and values as a traced decoder has them: each step returns them longer by what it was given."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session, self._past = session, 0
        self._names = [value.name for value in session.get_outputs()]
        self._cache = {name: _value(empty) for name, empty in empty_cache(session).items()}

    def step(self, embeds: F32, num_logits_to_keep: int) -> F32:
        """f32 [1, new, hidden] → logits f32 [1, num_logits_to_keep, vocabulary]."""
        total = self._past + embeds.shape[1]
        given = {
            "inputs_embeds": _value(np.ascontiguousarray(embeds)),
            "attention_mask": _value(np.ones((1, total), np.int64)),
            "position_ids": _value(np.arange(self._past, total)[None]),
        } | {name: _value(count) for name, count in rows_to_keep(self._session, num_logits_to_keep).items()}
        found = self._session.run_with_ort_values(self._names, given | self._cache)
        outputs = dict(zip(self._names, found, strict=True))
        logits: F32 = outputs.pop("logits").numpy()
        self._cache = {name.replace("present", _PAST): value for name, value in outputs.items()}
        self._past = total
        return _kept(logits, num_logits_to_keep)


class FixedCache:
    """Keys and values of fused attention, in buffers of their final length that each step writes into: nothing is
    copied. A decoder with fused attention takes no ``position_ids``.

    Args:
        length: positions of prompt and answer.
    """

    def __init__(self, session: onnxruntime.InferenceSession, length: int) -> None:
        self._session, self._length, self._done = session, length, 0
        self._binding = session.io_binding()
        for name, empty in empty_cache(session).items():
            _, heads, _, width = empty.shape
            buffer = onnxruntime.OrtValue.ortvalue_from_shape_and_type((1, heads, length, width), np.float32)
            self._binding.bind_ortvalue_input(name, buffer)
            self._binding.bind_ortvalue_output(name.replace(_PAST, "present"), buffer)

    def step(self, embeds: F32, num_logits_to_keep: int) -> F32:
        """f32 [1, new, hidden] → logits f32 [1, num_logits_to_keep, vocabulary]."""
        self._done += embeds.shape[1]
        assert self._done <= self._length
        self._binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeds))
        self._binding.bind_cpu_input("attention_mask", np.ones((1, self._done), np.int64))
        for name, count in rows_to_keep(self._session, num_logits_to_keep).items():
            self._binding.bind_cpu_input(name, count)
        self._binding.bind_output("logits")  # anew: what a run has put there has that run's shape
        self._session.run_with_iobinding(self._binding)
        logits: F32 = self._binding.get_outputs()[-1].numpy()
        return _kept(logits, num_logits_to_keep)


class NoCache:
    """An encoder's: the first step is the last one."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def step(self, embeds: F32, num_logits_to_keep: int) -> F32:
        """f32 [1, sequence, hidden] → logits f32 [1, 1, classes]."""
        length = embeds.shape[1]
        given = {"inputs_embeds": embeds, "attention_mask": np.ones((1, length), np.int64)}
        return run(self._session, given | {"position_ids": np.arange(length)[None]})["logits"]


def open_cache(session: onnxruntime.InferenceSession, length: int) -> GrowingCache | FixedCache | NoCache:
    """The cache that a decoder takes, empty."""
    inputs = [value.name for value in session.get_inputs()]
    if not any(name.startswith(_PAST) for name in inputs):
        return NoCache(session)
    return GrowingCache(session) if "position_ids" in inputs else FixedCache(session, length)
