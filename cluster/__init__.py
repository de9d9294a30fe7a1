"""Where cprec runs: errors and settings that every layer shares, storage, the Ray session, DeepSpeed presets."""
