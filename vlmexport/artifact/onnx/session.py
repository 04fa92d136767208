"""Open an ONNX graph with ONNX Runtime, as users run it: its default optimisation level, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from vlmexport.errors import CheckpointError, MissingDependency
from vlmexport.threads import operator_threads

FEATURES = "features"
"""Value inside of a vision encoder that is the features stage."""

NUM_LOGITS = "num_logits_to_keep"
"""Input of a decoder: how many of the last positions it gives logits of."""

_WARNINGS = 3
"""Log errors alone: ONNX Runtime writes its warnings straight to the terminal."""

# Field numbers of onnx.proto: ModelProto.graph, GraphProto.output, ValueInfoProto.name and type, TypeProto.tensor_type,
# its elem_type, and TensorProto.FLOAT.
_GRAPH, _OUTPUT, _NAME, _TYPE, _TENSOR_TYPE, _ELEM_TYPE, _FLOAT = 7, 12, 1, 2, 1, 1, 1


def open_session(
    path: Path, threads: int | None = None, graph: bytes | None = None, exact: bool = False
) -> onnxruntime.InferenceSession:
    """A session of a graph file.

    Args:
        path: the graph; external data is found beside it.
        threads: of one operator; ``operator_threads()`` where it is None.
        graph: what to open in place of the file's own graph (``with_outputs``).
        exact: int8 products are computed in float from the values that their integers stand for, which is what the
            graph says. Integer kernels lose sums of U8·S8 on some processors (``runtime.int8_kernels``).

    Raises:
        CheckpointError: the file is damaged.
        MissingDependency: this onnxruntime lacks an operator of the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or operator_threads()
    options.log_severity_level = _WARNINGS
    # It would plan a second place for all values of a run beside the first one's: more memory for no less time.
    options.enable_mem_pattern = False
    # Its threads wait for the next run busily. A bundle is three graphs, and those of one would take the next one's
    # time: half of an image's on two cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # The default on arm64. On x86 it leaves U8 graphs as they are, and S8 graphs run their integer products here too.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    if exact:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        if graph is None:
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        reason = _first_line(error)
        if "NOT_IMPLEMENTED" in reason or "opset" in reason.lower():
            raise MissingDependency(f"{path} needs a newer onnxruntime ({reason})", "pip install -U onnxruntime") from (
                error
            )
        raise CheckpointError(f"{path} cannot be opened ({reason})", "export the bundle again") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def with_outputs(path: Path, names: Sequence[str]) -> bytes:
    """A file's graph where float values inside it are more outputs.

    Protobuf defines that two serialized messages in a row are one message: lists go on, messages inside are joined. So
    a ``ModelProto`` that holds the new outputs alone is written behind the file's, and the package onnx is not needed.

    Args:
        names: of values that are no outputs yet. Of one that the graph does not hold, ``open_session`` will complain.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        graph = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened ({error.strerror})", "export the bundle again") from error
    is_float = _field(_TYPE, _field(_TENSOR_TYPE, bytes([_ELEM_TYPE << 3, _FLOAT])))
    outputs = b"".join(_field(_OUTPUT, _field(_NAME, name.encode()) + is_float) for name in names)
    return graph + _field(_GRAPH, outputs)


def _field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that holds text or another message."""
    length, size = len(content), bytearray([number << 3 | 2])
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(size) + bytes([length]) + content


def run(session: onnxruntime.InferenceSession, inputs: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """All outputs by name; inputs become contiguous."""
    names = [output.name for output in session.get_outputs()]
    given = {name: np.asarray(value, order="C") for name, value in inputs.items()}
    return dict(zip(names, session.run(names, given), strict=True))


def rows_to_keep(session: onnxruntime.InferenceSession, count: int) -> dict[str, np.ndarray[Any, Any]]:
    """The input of a decoder that asks for the logits of its last positions, of all where ``count`` is 0; none where
    the graph has no such input, because it is older or a classifier's: it gives what it always gives."""
    names = {value.name for value in session.get_inputs()}
    return {NUM_LOGITS: np.array(count, np.int64)} if NUM_LOGITS in names else {}


def empty_cache(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray[Any, Any]]:
    """f32 [1, kv_heads, 0, head_dim] for every key and value input of a decoder."""
    return {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
