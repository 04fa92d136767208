"""torch.onnx reads the sources of all its operators again for each graph; here it reads them once a process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from functools import cache

import pytest


@pytest.fixture(autouse=True, scope="session")
def _operators_read_once() -> Iterator[None]:
    """A registry of operators can be added to, so each graph is given a copy. A torch that keeps it elsewhere is only
    slower."""
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError):
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            read = cache(ONNXRegistry.from_torchlib)

            def copied(*arguments: int, **named: int) -> ONNXRegistry:
                registry = copy.copy(read(*arguments, **named))
                registry.functions = {target: list(found) for target, found in registry.functions.items()}
                return registry

            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield
