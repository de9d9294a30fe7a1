"""Encoding of samples as token ids: prompts, tokenised titles, windows of text. Pure."""
