"""Compare a bundle with the float model, stage by stage, and judge it by the recipe's gates."""

from vlmexport.measures.stage_result import GateResult, StageResult
from vlmexport.parity.check import check
from vlmexport.parity.result import ParityResult

__all__ = ["GateResult", "ParityResult", "StageResult", "check"]
