"""Files of behaviours as they are found in the world: where they lie, what their columns are called, how they are read."""
