"""Keeps the libraries' progress bars and hints out of a run's own lines."""

import logging
import os
import warnings

import torch
from transformers.utils import logging as transformers_logging


def silence_libraries() -> None:
    """Turns off hints and progress bars; to be called before a model or tokenizer is used."""
    if not torch.cuda.is_available():
        # transformers asks DeepSpeed for its accelerator, which warns when it has to guess.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # PEFT calls transformers by a deprecated name.
    warnings.filterwarnings("ignore", message=".is_gradient_checkpointing", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
