"""Vision encoder and projector in libmtmd, stage by stage, inside of the worker.

libmtmd has no stages: it encodes an image to visual tokens. ``cb_eval`` is asked about each node of its graph before
the node is computed, so inputs can be read and overwritten there:

- ``inp_raw`` f32 [1, 3, height, width] is what its preprocessing made of the image, and where pixels go in;
- ``positions`` and ``patches`` i32 are the two index inputs that stock libmtmd fills wrongly (llama.cpp #25814);
- the rows taken by ``patches`` are the features: read there, or overwritten so that given features reach the projector;
  in towers without a class token, whose graph has no such input, that is what the last norm gives; in InternVL's, whose
  class token is the last row, a copy without that row.

A picture that it cuts into several views becomes as many chunks, between chunks of text that say where they lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmexport.errors import Unsupported, VlmExportError
from vlmexport.model.protocols import HYBRID
from vlmexport.runtime.llamacpp.worker.pictures import Pictures, vocabulary
from vlmexport.runtime.llamacpp.worker.tensor import Node
from vlmexport.runtime.llamacpp.worker.watch import Watch

F32 = npt.NDArray[np.float32]
_CLASS_TOKEN, _LAST_NORM = "v.class_embd", "v.post_ln.bias"


@dataclass
class _Pass:
    """One walk over the graph: what goes in, where it stops, and what was seen."""

    stop: str
    pixels: F32 | None = None
    features: F32 | None = None
    repair: bool = False
    entered: bool = False
    class_token: str = _CLASS_TOKEN
    class_row: int | None = None
    features_name: str = ""
    found: F32 | None = None
    error: BaseException | None = None
    watch: Watch | None = None

    def ask(self, node: Node) -> bool:
        """Before a node is computed. True: it must be computed now and shown."""
        wanted = self.watch is not None and self.watch.weight(node) is not None
        for i, source in enumerate(node.inputs):
            if source.name == "inp_raw" and not self.entered:
                self.entered = True
                wanted |= self._enter(source)
            elif source.name.startswith(_CLASS_TOKEN) and node.op == "REPEAT":
                self.class_token = node.name
            elif source.name.startswith(self.class_token) and node.op == "CONCAT":
                self.class_row = 0 if i == 0 else node.shape[-2] - 1
            elif source.name == "positions":
                self._positions(source)
            elif source.name in ("patches", _LAST_NORM) or self._cuts_class_off(node, source):
                if source.name == "patches":
                    self._patches(source)
                self.features_name = node.name
                wanted = True
        return wanted

    def _cuts_class_off(self, node: Node, source: Node) -> bool:
        """Whether a node is a copy of all rows but the class token's, which is the last."""
        return (node.op, source.op) == ("CONT", "VIEW") and node.shape[-2] == self.class_row

    def show(self, node: Node) -> bool:
        """After a node that ``ask`` wanted. False: leave the rest out."""
        if self.stop == "pixels":
            return False
        if self.watch is not None:
            self.watch.keep(node)
        if node.name != self.features_name:
            return True
        if self.features is not None:
            node.write(self.features)
        if self.stop == "features":
            self.found = node.read(np.float32).reshape(1, *node.shape[-2:])
        return self.stop == "tokens"

    def _enter(self, source: Node) -> bool:
        if self.stop == "pixels":
            self.found = source.read(np.float32)
        elif self.pixels is not None:
            source.write(self.pixels)
        return self.stop == "pixels"

    def _positions(self, source: Node) -> None:
        if not self.repair:
            return
        if self.class_row is None:
            raise Unsupported("libmtmd's graph has no class token before its positions", HYBRID)
        # The class token has position 0 wherever it stands, the patches 1, 2, … in their order.
        rows = np.arange(source.shape[-1], dtype=np.int32)
        source.write(rows if self.class_row == 0 else np.roll(rows, -1))

    def _patches(self, source: Node) -> None:
        if self.repair:
            first = 1 if self.class_row == 0 else 0
            source.write(np.arange(first, first + source.shape[-1], dtype=np.int32))


class Vision:
    """libmtmd with one mmproj, without a language model.

    Args:
        path: the mmproj.
        image_size: side of the views it takes.
        width: of a visual token.
        words: a GGUF whose vocabulary libmtmd writes the text between views with; of a picture that is one view, it
            writes none.
    """

    def __init__(self, path: Path, image_size: int, width: int, threads: int, words: Path | None = None) -> None:
        from llama_cpp import llama_cpp, mtmd_cpp

        self._mtmd: Any = mtmd_cpp
        self._width = width
        self._words = None if words is None else vocabulary(words)
        self._pass = _Pass("tokens")
        self._known = False
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._evaluate)
        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu = False
        params.print_timings = False
        params.n_threads = threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.warmup = False
        params.cb_eval = self._callback
        self._context = mtmd_cpp.mtmd_init_from_file(str(path).encode(), self._words, params)
        if not self._context:
            raise VlmExportError(f"libmtmd cannot load {path}", "the file is damaged: export the bundle again")
        self._pictures = Pictures(self._context)
        self._blank = self._pictures.blank(image_size)

    def pixels(self, rgb: npt.NDArray[np.uint8]) -> tuple[F32, tuple[int, int]]:
        """u8 [height, width, 3] → f32 [views, 3, height, width], and rows and columns of the tiles: libmtmd's own
        preprocessing."""
        with self._pictures.cut(rgb) as found:
            return np.concatenate([self._run(_Pass("pixels"), view) for view in found.views]), found.tiles

    def features(self, pixels: F32, repair: bool) -> F32:
        """f32 [1, 3, height, width] → f32 [1, patches, vision width].

        Args:
            repair: set the two index inputs to what the graph needs; False leaves what the library wrote.
        """
        return self._run(_Pass("features", pixels=pixels, repair=repair))

    def tokens(self, features: F32) -> F32:
        """f32 [1, patches, vision width] → f32 [1, visual tokens, hidden]."""
        return self._run(_Pass("tokens", features=features))

    def tower_layers(self, pixels: F32, names: list[str], repair: bool) -> list[F32]:
        """What the tower's products by weights of these names give, the class token's row first; and the features."""
        watch = Watch(names)
        task = _Pass("features", pixels=pixels, repair=repair, watch=watch)
        features = self._run(task)
        shift = 0 if task.class_row in (None, 0) else 1
        return [*(np.roll(value, shift, -2) if value.ndim > 1 else value for value in watch.values(names)), features]

    def projector_layers(self, features: F32, names: list[str]) -> list[F32]:
        """The same of the projector, for f32 [1, patches, vision width]; and the tokens."""
        watch = Watch(names)
        tokens = self._run(_Pass("tokens", features=features, watch=watch))
        return [*watch.values(names), tokens]

    def class_row(self, pixels: F32) -> int | None:
        """The row at which the graph puts the class token, counted among all rows; None where it shows none."""
        task = _Pass("features", pixels=pixels)
        self._run(task)
        return task.class_row

    def _evaluate(self, address: int, ask: bool, _: Any) -> bool:
        try:
            if self._pass.error is not None:
                return False
            node = Node(address)
            if not self._known:
                node.check_layout()
                self._known = True
            return self._pass.ask(node) if ask else self._pass.show(node)
        except BaseException as error:  # an exception cannot pass through C
            self._pass.error = error
            return False

    def _run(self, task: _Pass, view: Any = None) -> F32:
        mtmd, self._pass = self._mtmd, task
        chunk = self._blank if view is None else view
        failed = mtmd.mtmd_encode_chunk(self._context, chunk)
        if task.error is not None:
            raise task.error
        if failed:
            raise VlmExportError("libmtmd failed to encode the image", "check the bundle with `vlmexport check`")
        if task.stop == "tokens":
            shape = (1, mtmd.mtmd_input_chunk_get_n_tokens(chunk), self._width)
            task.found = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self._context), shape).copy()
        if task.found is None:
            raise Unsupported(f"libmtmd's graph does not show its {task.stop}", HYBRID)
        return task.found
