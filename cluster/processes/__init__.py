"""Processes of a job: what they import, how they end, and what they depend on."""
