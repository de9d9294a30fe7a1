"""The base model: a hub id, a directory or an s3:// URI of a Hugging Face causal LM. Safetensors only."""

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

if TYPE_CHECKING:  # a tokenizer loads without them, in a third of the time
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(
    base: str, revision: str | None, precision: str
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model, on the CPU and in evaluation mode, and its tokenizer.

    Raises RecipeError when there is no such model, when it has no safetensors, or when the tokenizer does not fit it.
    """
    from transformers import AutoModelForCausalLM

    where = ensure_local(base)
    silence_libraries()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where, revision=revision, dtype=DTYPES[precision], use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"model.base: {base} does not load as a causal LM with safetensors weights: {error}"
        ) from None
    words = load_tokenizer(base, revision)
    if len(words) > model.config.vocab_size:
        raise RecipeError(
            f"model.base: the tokenizer of {base} has {len(words)} tokens, its model only {model.config.vocab_size}; they do not fit"
        )
    return model.eval(), words


@lru_cache(maxsize=2)
def load_tokenizer(base: str, revision: str | None) -> "PreTrainedTokenizerBase":
    """The tokenizer alone. Raises RecipeError when it does not load."""
    silence_libraries()
    try:
        return AutoTokenizer.from_pretrained(ensure_local(base), revision=revision)
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.base: {base} holds no tokenizer that loads: {error}") from None


def ensure_local(base: str) -> str:
    """What transformers can load: an object store's model is copied once per machine, everything else stays as it is.

    Raises RecipeError when a URI or a path holds no model.
    """
    if not is_remote(base):
        looks_like_path = base.startswith((".", "/", "~", "file://")) or base.count("/") > 1
        path = Path(base.removeprefix("file://")).expanduser()
        if looks_like_path and not (path / "config.json").is_file():
            raise RecipeError(
                f"model.base: no config.json in {path}; give a Hugging Face model directory, an s3:// URI or a hub id"
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
        except OSError:  # another process of this machine was first; its copy is whole, because it was renamed too
            shutil.rmtree(partial)
    return str(copy)
