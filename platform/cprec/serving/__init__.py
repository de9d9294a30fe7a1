"""Ranks on request: an HTTP server in front of replicas that hold a model, on Ray Serve."""
