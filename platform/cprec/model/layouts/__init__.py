"""Layouts of rows whose tokens do not all see each other, for `cprec.model.kernels.attention`."""
