"""Compare a bundle with the float model, stage by stage, and judge it by the recipe's gates."""

from vlmexport.parity.check import check
from vlmexport.parity.result import GateResult, ParityResult, StageResult

__all__ = ["GateResult", "ParityResult", "StageResult", "check"]
