"""Who trains a run, how it stands, and how it is asked to do something."""
