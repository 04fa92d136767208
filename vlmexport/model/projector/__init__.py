"""Projectors, one file per kind."""
