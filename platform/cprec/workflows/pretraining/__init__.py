"""The stations of a pre-training run: prepare, train, finish."""
