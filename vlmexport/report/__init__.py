"""One result, one renderer per file."""
