"""How a corpus is stored: Delta tables, catalogue of items, interactions, statistics."""
