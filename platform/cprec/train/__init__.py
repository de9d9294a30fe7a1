"""The training loop, its engine, its checkpoints; `run.py` alone knows Ray."""
