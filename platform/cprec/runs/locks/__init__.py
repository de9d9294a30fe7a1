"""What a run keeps from its first start: its recipe and its base."""
