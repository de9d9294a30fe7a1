"""The base model, its tokenizer and what is trained of it."""
