"""From a segment of the plan to the token batches of every worker."""
