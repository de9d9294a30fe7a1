"""Small recommenders trained on one domain alone: the baselines of an evaluation.

Pure torch; no Ray, no storage.
"""
