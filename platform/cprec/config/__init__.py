"""The recipe with all keys, the command line, and what every job does around its one call."""
