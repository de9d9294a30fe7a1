"""Checks of everything that a job depends on, before time and money are spent on it."""
