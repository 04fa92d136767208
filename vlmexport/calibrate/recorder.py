"""Hooks that add what goes into every linear layer to its statistics."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import nn

from vlmexport.calibrate.statistics import Bool, LayerStatistics
from vlmexport.errors import CheckpointError
from vlmexport.model import VLM


class Recorder:
    """Statistics of every ``Linear`` and ``Conv2d`` input of a model while it runs; a context manager.

    ``is_image`` tells the positions of the next pass apart (all are image where it is None), ``counted`` says which of
    them count (all where it is None), and ``decided`` which of them a token is taken from: the head reads the last
    positions alone, and of those it counts these. All are bool [sequences, positions]. What is pooled from sequences
    has one row each: these are text, and all count. Layers whose paths are ``left_out`` are not looked at.
    """

    def __init__(self, vlm: VLM, left_out: Collection[str] = ()) -> None:
        self.layers: dict[str, LayerStatistics] = {}
        self.is_image: Bool | None = None
        self.counted: Bool | None = None
        self.decided: Bool | None = None
        self._last: torch.Tensor | None = None
        self._statistics = LayerStatistics(0)
        self._handles = [
            module.register_forward_pre_hook(self._hook(name))
            for name, module in vlm.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and name not in left_out
        ]

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            # Query, key and value read one tensor, and so do gate and up: it is counted once.
            if inputs[0] is not self._last:
                self._last = inputs[0]
                self._statistics = self._of(inputs[0], isinstance(module, nn.Conv2d), name)
            known = self.layers.get(name)
            self.layers[name] = self._statistics if known is None else known + self._statistics

        return add

    def _of(self, x: torch.Tensor, channels_first: bool, name: str) -> LayerStatistics:
        x = x.detach().float()
        rows = (x.movedim(1, -1) if channels_first else x).flatten(0, -2).numpy()
        is_image, counted = self._masks(x, len(rows))
        if counted is not None and not counted.all():
            rows = rows[counted]
            is_image = is_image[counted] if is_image is not None else None
        found = LayerStatistics(rows.shape[-1])
        try:
            found.add(rows, is_image)
        except ValueError as error:
            raise CheckpointError(f"{name} is given values that are {error}", "the weights are damaged") from error
        return found

    def _masks(self, x: torch.Tensor, rows: int) -> tuple[Bool | None, Bool | None]:
        """bool [rows] each: what is image, and what counts."""
        is_image, counted = self.is_image, self.counted
        if is_image is None or counted is None:
            return None, None
        if x.dim() != 3:  # pooled
            return np.zeros(rows, np.bool_), None
        read = x.shape[1]
        if self.decided is not None and read < counted.shape[1]:
            counted = self.decided
        return is_image[:, -read:].flatten(), counted[:, -read:].flatten()
