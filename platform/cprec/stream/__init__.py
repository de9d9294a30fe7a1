"""Streaming of a segment of the plan: from corpus rows to the micro-batches of every worker."""
