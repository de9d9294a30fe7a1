"""The base model, its tokenizer, and the part of it that is trained."""
