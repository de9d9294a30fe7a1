"""What several benchmarks, or the long ones, are made of."""
