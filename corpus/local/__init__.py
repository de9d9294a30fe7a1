"""Builds and appends in one process; `corpus.distributed` does the same on Ray."""
