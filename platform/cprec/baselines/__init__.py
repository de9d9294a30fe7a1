"""Recommenders that know item ids only, trained on one domain: the baselines of an evaluation.

Pure torch; no Ray, no storage.
"""
