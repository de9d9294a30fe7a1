"""Keeps the libraries' progress bars and hints out of a run's own lines."""

import logging
import os
import warnings

import torch
from transformers.utils import logging as transformers_logging


def silence_libraries() -> None:
    """Call before a model or a tokenizer is loaded, built or trained."""
    if not torch.cuda.is_available():
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # transformers asks DeepSpeed for its accelerator, which warns when it has to guess
    warnings.filterwarnings(
        "ignore", message=".is_gradient_checkpointing", category=FutureWarning
    )  # PEFT asks transformers under a name of the past
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
