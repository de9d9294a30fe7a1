"""What every layer shares: errors, settings, storage, the Ray session, DeepSpeed presets."""
