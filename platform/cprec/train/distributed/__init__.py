"""Training on Ray: driver, controller actor, workers, feed.

The only part of `cprec.train` that knows Ray.
"""
