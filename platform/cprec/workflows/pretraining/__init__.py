"""The stages of a pre-training run: prepare, train, finish."""
