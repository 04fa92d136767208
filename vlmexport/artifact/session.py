"""Open an ONNX graph with ONNX Runtime, as users run it: its default optimisation level, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from vlmexport.artifact.workers import THREADS
from vlmexport.errors import CheckpointError, MissingDependency

_WARNINGS = 3
"""Log errors alone: ONNX Runtime writes its warnings straight to the terminal."""


def open_session(path: Path, threads: int = THREADS, graph: bytes | None = None) -> onnxruntime.InferenceSession:
    """A session of a graph file.

    Args:
        path: the graph; external data is found beside it.
        threads: of one operator.
        graph: what to open in place of the file's own graph (``with_outputs``).

    Raises:
        CheckpointError: the file is damaged.
        MissingDependency: this onnxruntime lacks an operator of the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _WARNINGS
    # Its threads wait for the next run busily. A bundle is three graphs, and those of one would take the next one's
    # time: half of an image's on two cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # The default on arm64. On x86 it leaves U8 graphs as they are, and S8 graphs run their integer products here too.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
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

    Raises:
        CheckpointError: the file is damaged, or holds no such value.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's, which no dependency of ours promises
        raise CheckpointError(f"{path} cannot be opened ({_first_line(error)})", "export the bundle again") from error
    made = {name for node in model.graph.node for name in node.output}
    known = {value.name for value in model.graph.output}
    for name in names:
        if name not in made:
            raise CheckpointError(f"{path} holds no value {name!r}", "export the bundle again")
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name, type=onnx.helper.make_tensor_type_proto(1, None)))
    graph: bytes = model.SerializeToString()
    return graph


def run(session: onnxruntime.InferenceSession, inputs: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """All outputs by name; inputs become contiguous."""
    names = [output.name for output in session.get_outputs()]
    given = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
    return dict(zip(names, session.run(names, given), strict=True))


def empty_cache(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray[Any, Any]]:
    """f32 [1, kv_heads, 0, head_dim] for every key and value input of a decoder."""
    return {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
