"""Names of the files and folders in which trained weights are kept."""

ADAPTER_FOLDER = "adapter"
"""Folder of a checkpoint that holds the trained weights."""
ADAPTER_CONFIG = "adapter_config.json"
"""File that makes a folder a PEFT directory."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""File of a PEFT directory that holds its weights."""
