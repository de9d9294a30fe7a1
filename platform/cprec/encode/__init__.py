"""From titles to token ids: prompts, title tokens, windows of text. Pure."""
