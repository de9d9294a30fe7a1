"""Turns logs of interactions into a versioned training corpus (paper Sec. 4.3)."""
