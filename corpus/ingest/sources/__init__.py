"""Raw data files: where each format keeps them, what it calls their columns, how they are read."""
