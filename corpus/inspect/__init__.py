"""Checks a corpus for leakage and describes it: numbers, console tables, one HTML page."""
