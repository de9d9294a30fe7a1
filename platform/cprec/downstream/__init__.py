"""What follows pre-training on one domain: baselines, fine-tuning, the search of its lr, scoring.

Fine-tuning is done as in LLaRA (arXiv 2312.02445).
"""
