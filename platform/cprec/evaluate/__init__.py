"""How well a model ranks: scores, metrics, significance."""
