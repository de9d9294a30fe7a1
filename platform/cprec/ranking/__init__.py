"""Ranks candidates for histories with a model that is loaded once."""
