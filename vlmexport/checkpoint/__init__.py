"""What the user has: layouts, lazy tensors, tokenizer, told as one Spec."""

from vlmexport.checkpoint.layout import Checkpoint, open_checkpoint
from vlmexport.checkpoint.spec import LanguageSpec, ProjectorSpec, PromptSpec, Spec, VisionSpec
from vlmexport.checkpoint.tokenizer import Tokenizer

__all__ = [
    "Checkpoint",
    "LanguageSpec",
    "ProjectorSpec",
    "PromptSpec",
    "Spec",
    "Tokenizer",
    "VisionSpec",
    "open_checkpoint",
]
