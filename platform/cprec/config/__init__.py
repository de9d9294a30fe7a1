"""The recipe with all keys, recipe files, the command line, and what every job does around it."""
