"""A checkpoint's folder: documents, lazy tensors, hashes, the Hub; and the Spec that everything is told as."""
