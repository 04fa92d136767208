"""Differences and scores as numbers, with their intervals."""
