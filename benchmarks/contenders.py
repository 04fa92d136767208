"""What speed is measured of: decoders that take token ids step by step, libmtmd, and ONNX Runtime's own quantizers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Step = Callable[[np.ndarray, bool], object]
"""Decodes token ids, from an empty cache where it is told to."""


def open_as_ours(path: Path, threads: int) -> Any:
    """With vlmexport's options of a session."""
    from vlmexport.artifact.onnx.session import open_session

    return open_session(path, threads)


def open_as_theirs(path: Path, threads: int) -> Any:
    """With those of ONNX Runtime itself."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def onnx_decoder(embedding: Any, decoder: Any, positions: int) -> Step:
    """Of a bundle.

    Args:
        embedding: session of ``embed_tokens.onnx``.
        decoder: that of ``decoder_model_merged*.onnx``.
        positions: of prompt and answer.
    """
    from vlmexport.runtime.ort.cache import open_cache

    caches: list[Any] = []

    def step(ids: np.ndarray, anew: bool) -> None:
        if anew:
            caches[:] = [open_cache(decoder, positions)]
        (embeds,) = embedding.run(None, {"input_ids": ids[None].astype(np.int64)})
        caches[0].step(embeds, 1)

    return step


def llama_decoder(path: Path, positions: int, threads: int, batch: int) -> Step:
    """llama.cpp; ``batch`` positions are computed at once."""
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=positions, n_batch=batch, n_ubatch=batch, n_threads=threads,
                  n_threads_batch=threads, verbose=False)  # fmt: skip

    def step(ids: np.ndarray, anew: bool) -> None:
        if anew:
            model.reset()
        model.eval(ids.tolist())

    return step


class Mtmd:
    """libmtmd as it is, at its defaults.

    Args:
        words: a GGUF whose vocabulary it writes the text between views with.
    """

    def __init__(self, mmproj: Path, words: Path, threads: int) -> None:
        from llama_cpp import llama_cpp, mtmd_cpp

        from vlmexport.runtime.llamacpp.worker.pictures import Pictures, vocabulary

        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.n_threads = False, False, threads
        self._mtmd: Any = mtmd_cpp
        self._log = llama_cpp.llama_log_callback(lambda *_: None)  # kept: the library calls it
        llama_cpp.llama_log_set(self._log, None)
        mtmd_cpp.mtmd_log_set(self._log, None)
        self._context = mtmd_cpp.mtmd_init_from_file(str(mmproj).encode(), vocabulary(words), params)
        self._pictures, self._kept, self._views = Pictures(self._context), ExitStack(), ()

    def show(self, rgb: npt.NDArray[np.uint8]) -> int:
        """Cut a picture u8 [height, width, 3]; how many views it became."""
        self._kept.close()
        self._views = self._kept.enter_context(self._pictures.cut(rgb)).views
        return len(self._views)

    def encode(self, view: int) -> None:
        """One view of the picture to visual tokens."""
        if self._mtmd.mtmd_encode_chunk(self._context, self._views[view]):
            raise SystemExit("libmtmd failed to encode the image")


def quantize_static(source: Path, target: Path, shape: tuple[int, ...], images: int = 4) -> None:
    """A tower by ONNX Runtime's own tool: preprocessed, Q/DQ, minima and maxima of random images, and the types that
    its documentation names for x86 (of its default, S8 times S8, most products run in float there)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            self._left = [random.standard_normal(shape, np.float32) for _ in range(images)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return {"pixel_values": self._left.pop()} if self._left else None

    target.parent.mkdir(parents=True, exist_ok=True)  # the tool leaves hundreds of files beside it
    ready = target.with_suffix(".float.onnx")
    quant_pre_process(source, ready, save_as_external_data=True, skip_symbolic_shape=True)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize(ready, target, Images(), use_external_data_format=True, **types)


def quantize_dynamic(source: Path, target: Path) -> None:
    """As transformers.js' ``scripts/quantize.py`` makes ``*_quantized.onnx``: one scale a weight, U8 where the graph
    has a convolution, else S8."""
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    nodes = onnx.load(source, load_external_data=False).graph.node
    kind = QuantType.QUInt8 if any(node.op_type == "Conv" for node in nodes) else QuantType.QInt8
    target.parent.mkdir(parents=True, exist_ok=True)
    quantize(source, target, weight_type=kind, extra_options={"MatMulConstBOnly": True})
