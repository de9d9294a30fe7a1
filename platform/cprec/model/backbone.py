"""Loads the base model and its tokenizer.

A base is a Hugging Face causal LM: a hub id, a directory or an `s3://` URI. Weights are read from
safetensors only. What is loaded is the base, whole, or it is refused (`cprec.model.base_checks`).
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from cluster.errors import RecipeError
from cprec.model import base_checks
from cprec.model.base_files import CONFIG_FILE, LocalBase, ensure_local
from cprec.model.libraries import refused_input, silence_libraries

if TYPE_CHECKING:  # without these imports a tokenizer loads in a third of the time
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Data type of weights for each value of `model.precision`."""

TOKENIZER_FILE = "tokenizer.json"


def load(
    base: str, revision: str | None, precision: str
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Loads a base model and its tokenizer.

    Args:
        base: Hub id, directory or `s3://` URI.
        revision: Revision of a hub id, or the digest that the files must have
            (`cprec.model.base_files`).
        precision: Data type of the weights, a key of `DTYPES`.

    Returns:
        The model, on the CPU and in evaluation mode, and the tokenizer.

    Raises:
        RecipeError: There is no such model, it is damaged, weights of it are missing or are none of
            the model's, or it does not fit its tokenizer.
        RunError: Its files have another digest.
    """
    # Imported late: a process that needs only the tokenizer does not load the model code.
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

    silence_libraries()
    local = ensure_local(base, revision, with_weights=True)
    if (directory := Path(local.path)).is_dir():
        base_checks.check_files(directory, base)
    source: dict[str, Any] = {"revision": local.hub_revision, "trust_remote_code": False}
    # Only calls of libraries stand in these blocks: an error of our own stays a fault.
    where = f"model.base: {base} does not load as a causal LM"
    with refused_input(where):
        values, _ = PreTrainedConfig.get_config_dict(local.path, revision=local.hub_revision)
    base_checks.check_config(values, base)
    with refused_input(where):
        config = AutoConfig.from_pretrained(local.path, **source)
    base_checks.check_class(config, base)
    with refused_input(where):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            local.path,
            config=config,
            dtype=DTYPES[precision],
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below
            output_loading_info=True,
            **source,
        )
    model, info = loaded
    base_checks.check_loaded(info, base)
    base_checks.check_finite(model, base)
    tokenizer = load_tokenizer(base, local.revision)
    base_checks.check_vocabulary(tokenizer, model, base)
    model.eval()
    return model, tokenizer


@lru_cache(maxsize=2)
def load_tokenizer(base: str, revision: str | None) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer of a base model, without the model.

    Added tokens that the model does not embed are dropped. Text that looks like one is then
    tokenised as any other text.

    Args:
        base: Hub id, directory or `s3://` URI.
        revision: As `load` takes it.

    Raises:
        RecipeError: The base has no tokenizer that loads, or the model embeds no end token.
        RunError: Its files have another digest.
    """
    silence_libraries()
    local = ensure_local(base, revision, with_weights=False)
    directory = Path(local.path)
    if directory.is_dir():
        base_checks.check_json_files(directory, base)
    where = f"model.base: the tokenizer of {base} does not load"
    try:
        with refused_input(where):
            tokenizer = AutoTokenizer.from_pretrained(
                local.path, revision=local.hub_revision, trust_remote_code=False
            )
    except RecipeError as error:
        raise RecipeError(_name_tokenizer_file(directory, where) or str(error)) from None
    if not len(tokenizer):
        raise RecipeError(f"model.base: {base} holds no tokenizer; add its {TOKENIZER_FILE}")
    _drop_unembedded_tokens(tokenizer, local, base)
    return tokenizer


def _name_tokenizer_file(directory: Path, where: str) -> str | None:
    """Returns why tokenizer.json of a base does not load; None if it does, or if there is none."""
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        return None
    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception for whatever is wrong in a file
        return f"{where}: {TOKENIZER_FILE} is not a tokenizer ({error}); fetch or save it again"
    return None


def _drop_unembedded_tokens(
    tokenizer: "PreTrainedTokenizerBase", local: LocalBase, base: str
) -> None:
    """Removes added tokens that have no row in the model's embedding, as far as the config tells.

    Bases are published with such tokens: for images, or for padding.
    """
    from transformers import AutoConfig

    added = tokenizer.added_tokens_encoder
    if not added or max(added.values()) < _stated_rows(local.path):
        return
    with refused_input(f"model.base: {CONFIG_FILE} of {base} does not load"):
        config = AutoConfig.from_pretrained(
            local.path, revision=local.hub_revision, trust_remote_code=False
        )
    rows = config.get_text_config().vocab_size
    unembedded = {token for token, index in added.items() if index >= rows}
    if not unembedded:
        return
    if used := unembedded & {tokenizer.eos_token, tokenizer.bos_token}:
        raise RecipeError(
            f"model.base: {used.pop()!r} begins or ends texts for the tokenizer of {base}, and its "
            f"model embeds only {rows} tokens, without this one; give the tokenizer that belongs "
            "to these weights, or resize the model's embedding"
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # no fast tokenizer; `check_vocabulary` refuses it
        return
    state = json.loads(backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in unembedded]
    vocabulary = state["model"].get("vocab")
    if isinstance(vocabulary, dict):
        for token in unembedded:
            vocabulary.pop(token, None)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def _stated_rows(local_base: str) -> int:
    """Returns `vocab_size` of a local config.json, which is quick to read; 0 if it has none."""
    path = Path(local_base) / CONFIG_FILE
    values = json.loads(path.read_bytes()) if path.is_file() else {}
    return int(values.get("vocab_size", 0))
