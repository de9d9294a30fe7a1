"""Behaviour logs in, a versioned training corpus out (paper Sec. 4.3)."""
