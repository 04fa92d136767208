"""Run the five stages of a bundle, or of the float model."""

from vlmexport.runtime.stages import STAGES, Runtime, Token

__all__ = ["STAGES", "Runtime", "Token"]
