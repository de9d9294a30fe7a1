"""Reads raw interactions and items, cleans them, and reduces them to their k-core."""
