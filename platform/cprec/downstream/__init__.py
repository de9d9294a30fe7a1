"""What follows pre-training on one domain: baselines, fine-tuning as LLaRA does it, the search for its learning rate, scoring of all of them."""
