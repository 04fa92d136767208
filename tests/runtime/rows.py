"""What every runtime promises of the rows of its logits."""

from __future__ import annotations

import numpy as np

from vlmexport.processing.prompt import Prompt
from vlmexport.runtime.stages import F32, Decoding


def assert_rows_are_those_that_are_asked_for(side: Decoding, prompt: Prompt, tokens: F32) -> None:
    """The last ones and no others, in memory of their own; decoding hands out one row a token.

    libllama multiplies one row by other kernels than many, which round f16 otherwise.
    """
    whole = side.logits(prompt, [tokens], 0)
    rounding = 1e-3 * np.abs(whole).max()
    assert whole.shape[1] == len(prompt.ids)
    few = side.logits(prompt, [tokens], 3)
    assert few.shape == (1, 3, whole.shape[2])
    assert getattr(few.base, "nbytes", 0) <= few.nbytes
    np.testing.assert_allclose(few, whole[:, -3:], atol=rounding)
    steps = list(side.steps(prompt, [tokens], 3, ignore_eos=True))
    assert [rows.shape for _, rows in steps] == [(1, whole.shape[2])] * 3
    assert [token.id for token, _ in steps] == [int(rows[0].argmax()) for _, rows in steps]
    np.testing.assert_allclose(steps[0][1], whole[0, -1:], atol=rounding)
