"""The sections of the recipe: classes with the defaults, bounds and units of their keys."""
