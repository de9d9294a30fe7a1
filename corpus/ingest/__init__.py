"""Reads raw interactions and items, cleans them, and takes their k-core."""
