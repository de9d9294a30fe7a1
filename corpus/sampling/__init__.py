"""Turns cleaned interactions into training samples: sequences, histories, candidates, ids. Pure."""
