"""``vlmexport new``: a checkpoint of any vision encoder, projector and language model."""

from vlmexport.design.specify import Design, language_of, specify, vision_of
from vlmexport.design.write import MARK, create

__all__ = ["MARK", "Design", "create", "language_of", "specify", "vision_of"]
