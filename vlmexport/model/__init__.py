"""The float reference: a vision encoder, a projector and a language model, joined in ``vlm.py``."""

from vlmexport.model.vlm import VLM, load

__all__ = ["VLM", "load"]
