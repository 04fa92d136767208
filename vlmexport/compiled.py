"""Inner loops compiled by Numba for the processor at hand. What it compiled is kept on disk where there is a folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Machine code that runs without the interpreter's lock; floats are added in the order that is written."""
    return _compiled(function)


def compiled_for_finite(function: Function) -> Function:
    """The same where no value is NaN and zeros have no sign, so that minima and maxima fill vectors."""
    return _compiled(function, fastmath={"nnan", "nsz"})


def _compiled(function: Function, **options: Any) -> Function:
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return cast(Function, njit(cache=True, **options)(function))
    except RuntimeError:  # no folder that can be written to
        return cast(Function, njit(**options)(function))
