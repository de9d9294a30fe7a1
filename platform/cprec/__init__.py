"""Continual pre-training of large language models for recommendation, on Ray."""
