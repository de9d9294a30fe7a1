"""Training on Ray: driver, controller actor, workers, feed. The only part of `train` that knows Ray."""
