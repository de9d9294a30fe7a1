"""The training loop, its engine and its measurements; only `distributed` knows Ray."""
