"""Differences and scores as numbers with their intervals, and gates that judge them."""
