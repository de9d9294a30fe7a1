"""Shows runs to people: MLflow, the report page, figures, the progress line, console tables."""
