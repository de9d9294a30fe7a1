"""What a corpus is on storage: Delta tables, catalogue of items, stored interactions, statistics."""
