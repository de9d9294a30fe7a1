"""Checks that what was loaded is the base: its files, its config, every weight, its vocabulary.

Each check raises RecipeError, which names the file or the weights, the reason and what to do.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from cluster.errors import RecipeError
from cprec.model.base_files import CONFIG_FILE, WEIGHTS_SUFFIX

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
OBJECT_FILES = (CONFIG_FILE, "generation_config.json", "tokenizer_config.json")
"""Files that hold a JSON object."""
JSON_FILES = (
    *OBJECT_FILES,
    INDEX_FILE,
    *("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
)
"""Files that hold JSON of any form."""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
FLOAT_TYPES = ("F16", "F32", "F64", "BF16")
"""Types of unquantised weights in a safetensors file."""
GIT_LFS_POINTER = b"version https://git-lfs"

WRAPPER_PREFIXES = {
    "module.": "DistributedDataParallel or DeepSpeed",
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "base_model.model.": "PEFT without a merge",
}
"""First parts of weights' names that a wrapper left, and which wrapper that is."""

OTHER_HEAD = re.compile(r"For(?!CausalLM$|ConditionalGeneration$)[A-Z]\w*$")
"""Names of architectures that end in another head than a language model's."""

MAX_NAMES = 4
"""Names of weights that a message shows."""


# -- files


def check_files(directory: Path, base: str) -> None:
    """Checks the files that a model is loaded from, before any library reads them.

    Args:
        directory: The base's directory.
        base: Name of the base, for messages.
    """
    check_json_files(directory, base)
    if (directory / WEIGHTS_FILE).is_file():
        shards: Collection[str] = [WEIGHTS_FILE]
    elif (directory / INDEX_FILE).is_file():
        shards = _indexed_shards(directory, base)
    else:
        raise RecipeError(
            f"model.base: {base} holds no {WEIGHTS_FILE}; {_other_weights(directory)}"
        )
    for shard in shards:
        if (reason := _safetensors_damage(directory / shard)) is not None:
            raise RecipeError(f"model.base: {shard} of {base} {reason}")


def check_json_files(directory: Path, base: str) -> None:
    """Checks that the JSON files that libraries read are JSON."""
    for path in (directory / name for name in JSON_FILES):
        if not path.is_file():
            continue
        content = path.read_bytes()
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            reason = _no_content(content) or f"is not JSON ({error}); fetch it again"
            raise RecipeError(f"model.base: {path.name} of {base} {reason}") from None
        if path.name in OBJECT_FILES and not isinstance(values, dict):
            raise RecipeError(
                f"model.base: {path.name} of {base} is not a JSON object; fetch or save it again"
            )


def _indexed_shards(directory: Path, base: str) -> set[str]:
    """Returns the files that the index names; raises RecipeError if one is absent."""
    index = json.loads((directory / INDEX_FILE).read_bytes())
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise RecipeError(
            f"model.base: {INDEX_FILE} of {base} has no weight_map; fetch or save it again"
        )
    shards = set(map(str, weight_map.values()))
    if absent := sorted(shard for shard in shards if not (directory / shard).is_file()):
        raise RecipeError(
            f"model.base: {base} lacks {len(absent)} of the {len(shards)} files that {INDEX_FILE} "
            f"names: {_shorten(absent)}; fetch them"
        )
    return shards


def _other_weights(directory: Path) -> str:
    """Says which weights a directory without model.safetensors holds, and what to do."""
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    if "adapter_model.safetensors" in names:
        return "it is a PEFT adapter, not a model: merge it into its base first"
    if found := [name for name in names if name.endswith((WEIGHTS_SUFFIX, ".gguf"))]:
        return f"{_shorten(found)} has not the name or the form of a Hugging Face model's weights"
    if found := [name for name in names if name.endswith(PICKLE_SUFFIXES)]:
        return (
            f"{_shorten(found)} is not read, because loading a pickle may run any code: load it "
            "once with transformers and save_pretrained writes safetensors"
        )
    return "fetch the weights as safetensors"


def _safetensors_damage(path: Path) -> str | None:
    """Returns what is wrong with a file of weights; None if it is whole."""
    with path.open("rb") as file:
        beginning = file.read(256)
    if (reason := _no_content(beginning)) is not None:
        return reason
    try:
        with safe_open(path, "pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            empty = [name for name, part in slices.items() if 0 in part.get_shape()]
            quantised = [
                name
                for name, part in slices.items()
                if name.endswith("weight") and not part.get_dtype().startswith(FLOAT_TYPES)
            ]
    except SafetensorError as error:
        size = path.stat().st_size
        return f"is damaged or was cut ({error}; it has {size:,} bytes); fetch it again"
    if empty:
        return (
            f"holds {len(empty)} empty tensors of {len(slices)} ({_shorten(empty)}), as ZeRO 3 "
            "leaves them: save the gathered weights (zero_to_fp32.py, or "
            "stage3_gather_16bit_weights_on_model_save)"
        )
    if quantised:
        return (
            f"holds {len(quantised)} quantised weights, as {quantised[0]} in "
            f"{slices[quantised[0]].get_dtype()}; give the model in bf16 or fp32"
        )
    return None


def _no_content(beginning: bytes) -> str | None:
    """Says why a file holds nothing of a model, from its first bytes; None if that is not known."""
    if not beginning:
        return "is empty (0 bytes); fetch it again"
    if beginning.startswith(GIT_LFS_POINTER):
        return "is a git-lfs pointer, not the file itself; run `git lfs pull` there"
    if beginning.lstrip().startswith(b"<"):
        return "is a web page, not the file itself; fetch it again"
    return None


# -- config


def check_config(values: Mapping[str, Any], base: str) -> None:
    """Checks that config.json describes a causal language model that can be trained.

    Args:
        values: Content of config.json.
        base: Name of the base, for messages.

    Raises:
        RecipeError: It does not.
    """
    # Imported late: slow to load.
    from transformers import CONFIG_MAPPING, __version__

    where = f"model.base: {CONFIG_FILE} of {base}"
    model_type = values.get("model_type")
    if not model_type:
        raise RecipeError(f"{where} names no model_type; give a Hugging Face model")
    if quantised := values.get("quantization_config"):
        named = quantised.get("quant_method") if isinstance(quantised, dict) else None
        method = named or "no method named"
        raise RecipeError(
            f"{where} says that the weights are quantised ({method}), which are not trained; give "
            "the model in bf16 or fp32"
        )
    if model_type not in CONFIG_MAPPING:
        code = "; it needs code of its own, which is never run" if values.get("auto_map") else ""
        raise RecipeError(
            f"{where} has the model_type {model_type!r}, which transformers {__version__} does not "
            f"know{code}; give a model that transformers implements"
        )
    architectures = [str(name) for name in values.get("architectures") or ()]
    if architectures and all(OTHER_HEAD.search(name) for name in architectures):
        raise RecipeError(
            f"{where} says {architectures[0]}, which is not a causal language model; give the "
            "model that it was made from"
        )


def check_class(config: Any, base: str) -> None:
    """Checks that transformers has a causal language model, of text alone, for a config."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    where = f"model.base: {base} (model_type {config.model_type!r})"
    give = "give a decoder-only language model of text"
    if getattr(config, "is_encoder_decoder", False):
        raise RecipeError(f"{where} is an encoder-decoder model; {give}")
    model_class: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if model_class is None:
        raise RecipeError(f"{where} is not a causal language model; {give}")
    is_encoder = AutoModelForMaskedLM._model_mapping.get(type(config), None) is not None
    if is_encoder and not getattr(config, "is_decoder", False):
        raise RecipeError(f"{where} is an encoder, whose tokens see those after them; {give}")
    if "ForConditionalGeneration" in model_class.__name__:
        raise RecipeError(f"{where} is a {model_class.__name__}, which takes images too; {give}")


# -- weights


def check_loaded(info: Mapping[str, Iterable[Any]], base: str) -> None:
    """Checks that every weight of the model is the base's, and every weight of the base is used.

    transformers initialises weights that it does not find at random, differently in every process.

    Args:
        info: What transformers reports of loading. Tied weights, and those that an architecture
            declares as ignored, are in none of its lists.
        base: Name of the base, for messages.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    where = f"model.base: {base}"
    for prefix, wrapper in WRAPPER_PREFIXES.items():
        if any(name.startswith(prefix) for name in unexpected):
            raise RecipeError(
                f"{where}: the names of its weights begin with {prefix!r}, as {wrapper} leaves "
                f"them ({_shorten(unexpected)}); save the model inside the wrapper"
            )
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise RecipeError(
            f"{where}: {len(mismatched)} weights have other sizes than {CONFIG_FILE} says, as "
            f"{name}: {list(found)} in the file, {list(expected)} by the config; give the config "
            "that these weights were saved with"
        )
    if missing:
        unused = f"; its files hold {_shorten(unexpected)} instead" if unexpected else ""
        raise RecipeError(
            f"{where} lacks {len(missing)} weights of the model: {_shorten(missing)}{unused}; they "
            "would be random. Give a whole model, as save_pretrained writes it"
        )
    if unexpected:
        raise RecipeError(
            f"{where} holds {len(unexpected)} weights that {CONFIG_FILE} has no place for: "
            f"{_shorten(unexpected)}; without them it is another model. Give the config that these "
            "weights were saved with, or save the causal language model alone"
        )


def check_finite(model: torch.nn.Module, base: str) -> None:
    """Checks that no weight is NaN or infinite."""
    broken = [
        name
        for name, weight in model.state_dict().items()
        # A sum shows it at the speed of memory; only where it overflows is each value looked at.
        if weight.is_floating_point()
        and not weight.sum(dtype=torch.float32).isfinite()
        and not weight.isfinite().all()
    ]
    if broken:
        raise RecipeError(
            f"model.base: {base} has NaN or infinite values in {len(broken)} weights: "
            f"{_shorten(broken)}; give a checkpoint from before it diverged"
        )


# -- vocabulary


def check_vocabulary(
    tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel", base: str
) -> None:
    """Checks that every token that can occur has a row of the embedding.

    `backbone.load_tokenizer` has dropped added tokens without one, and titles make no special ones.
    """
    unused = set(tokenizer.all_special_tokens) - {tokenizer.eos_token, tokenizer.bos_token}
    embedding: Any = model.get_input_embeddings()
    rows = int(embedding.weight.shape[0])
    above = [
        token
        for token, index in tokenizer.get_vocab().items()
        if index >= rows and token not in unused
    ]
    if above:
        raise RecipeError(
            f"model.base: the tokenizer of {base} has {len(tokenizer)} tokens, and its model "
            f"embeds only {rows}, without {_shorten(sorted(above))}; give the tokenizer that "
            "belongs to these weights, or resize the model's embedding"
        )


def _shorten(names: Collection[str]) -> str:
    """Returns the first of some names, and how many more there are."""
    shown = list(names)[:MAX_NAMES]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
