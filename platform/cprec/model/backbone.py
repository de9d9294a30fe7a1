"""Loads the base model and its tokenizer.

A base is a Hugging Face causal LM: a hub id, a directory or an `s3://` URI. Weights are read from
safetensors only.
"""

import os
import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer

from cluster.errors import RecipeError
from cluster.storage import download, exists, is_remote, join, sha256
from cprec.model.library_logging import silence_libraries

if TYPE_CHECKING:  # without these imports a tokenizer loads in a third of the time
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Data type of weights for each value of `model.precision`."""


def load(
    base: str, revision: str | None, precision: str
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Loads a base model and its tokenizer.

    Args:
        base: Hub id, directory or `s3://` URI.
        revision: Revision of a hub id.
        precision: Data type of the weights, a key of `DTYPES`.

    Returns:
        The model, on the CPU and in evaluation mode, and the tokenizer.

    Raises:
        RecipeError: There is no such model, it has no safetensors weights, or its tokenizer has
            more tokens than the model.
    """
    # Imported late: a process that needs only the tokenizer does not load the model code.
    from transformers import AutoModelForCausalLM

    local_base = ensure_local(base)
    silence_libraries()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            local_base, revision=revision, dtype=DTYPES[precision], use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"model.base: {base} does not load as a causal LM with safetensors weights: {error}"
        ) from None
    tokenizer = load_tokenizer(base, revision)
    if len(tokenizer) > model.config.vocab_size:
        raise RecipeError(
            f"model.base: the tokenizer of {base} has {len(tokenizer)} tokens, its model only "
            f"{model.config.vocab_size}; they do not fit"
        )
    return model.eval(), tokenizer


@lru_cache(maxsize=2)
def load_tokenizer(base: str, revision: str | None) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer of a base model, without the model.

    Args:
        base: Hub id, directory or `s3://` URI.
        revision: Revision of a hub id.

    Raises:
        RecipeError: The base has no tokenizer that loads.
    """
    silence_libraries()
    try:
        return AutoTokenizer.from_pretrained(ensure_local(base), revision=revision)
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.base: {base} holds no tokenizer that loads: {error}") from None


def ensure_local(base: str) -> str:
    """Returns a hub id or local directory for a base, as transformers loads it.

    A model in an object store is copied once per machine. Other bases need no copy.

    Raises:
        RecipeError: A URI or a path holds no model.
    """
    if not is_remote(base):
        looks_like_path = base.startswith((".", "/", "~", "file://")) or base.count("/") > 1
        path = Path(base.removeprefix("file://")).expanduser()
        if looks_like_path and not (path / "config.json").is_file():
            raise RecipeError(
                f"model.base: no config.json in {path}; give a Hugging Face model directory, "
                "an s3:// URI or a hub id"
            )
        return str(path) if path.is_dir() else base
    copy = Path(gettempdir()) / "cprec-base" / sha256(base.encode())[:16]
    if not copy.exists():
        if not exists(join(base, "config.json")):
            raise RecipeError(f"model.base: no config.json below {base}")
        partial = copy.with_name(f"{copy.name}.{os.getpid()}")
        download(base, partial)
        try:
            partial.rename(copy)
        except OSError:
            # Another process of this machine was first. Its copy is complete, because it was
            # renamed into place too.
            shutil.rmtree(partial)
    return str(copy)
