"""Finds candidates in a whole catalogue: item vectors, sequences and popularity, blended."""
