"""What the user has: a model found by its name, and opened by its family as one Spec with its tensors."""
