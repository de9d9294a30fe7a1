"""What people see of runs: MLflow, the report page, figures, the progress line."""
