"""Run the five stages of a bundle, or of the float model."""

from vlmexport.runtime.stages import Runtime, Token

__all__ = ["Runtime", "Token"]
