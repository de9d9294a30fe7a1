"""Recommenders that know item ids only, trained on one domain: what a language model has to beat. Pure torch; no Ray, no storage."""
