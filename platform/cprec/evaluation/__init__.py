"""How well a model ranks candidates: scores, metrics and significance."""
