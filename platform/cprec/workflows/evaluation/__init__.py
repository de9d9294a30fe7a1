"""What an evaluation is made of: its plan, and the ranking of a whole catalogue."""
