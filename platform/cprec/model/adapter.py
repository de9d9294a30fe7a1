"""The trained part of a model: a LoRA adapter, weights of its own, or a soft prompt before it.

It is saved as the folder `adapter/` of a checkpoint.
"""

import json
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cluster.errors import RecipeError, RunError
from cprec.config.sections.model import ModelSettings
from cprec.encode.prompt import PROMPT_FILE, PromptTemplate
from cprec.model import soft_prompt
from cprec.model.adapter_files import ADAPTER_WEIGHTS, FULL_WEIGHTS, PARTIAL_CONFIG, PARTIAL_WEIGHTS
from cprec.model.libraries import refused_input
from cprec.model.self_check import decoder_layers

ADAPTER_NAME = "default"
"""PEFT's name for a model's first adapter."""
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of sibling layers that read the same input, in the order in which models call them."""


def attach(model: PreTrainedModel, settings: ModelSettings, seed: int) -> torch.nn.Module:
    """Makes a base model trainable, as `model.adapter` says.

    Args:
        model: The base model; it is changed in place.
        settings: The recipe's section `model`.
        seed: Seed of the adapter's first weights, so that they are equal on every worker.

    Returns:
        The model with its trainable part, in training mode.

    Raises:
        RecipeError: The base has no such part.
    """
    torch.manual_seed(seed)
    match settings.adapter:
        case "full":
            model.requires_grad_(True)
        case "partial":
            _unfreeze(model, _partial_names(model, settings))
        case "prompt":
            soft_prompt.add(model, settings.soft_tokens)
    if settings.adapter != "lora":
        return cast(torch.nn.Module, model.train())
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=lora_targets(model),
        task_type="CAUSAL_LM",
    )
    with refused_input("model.adapter: LoRA does not fit this base (model.adapter full may)"):
        adapted: torch.nn.Module = get_peft_model(model, config)
    return adapted.train()


def _partial_names(model: PreTrainedModel, settings: ModelSettings) -> set[str]:
    """Returns the names of the weights that `model.adapter partial` trains.

    Raises:
        RecipeError: The base has no such weights, or fewer layers.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in settings.trained_weights:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(
                f"model.trained_weights: no weight of this base is named {pattern}; its names are "
                f"such as {', '.join(names[:2])} and {names[-1]}"
            )
    if settings.trained_weights:
        patterns = settings.trained_weights
        return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    layers = decoder_layers(model)
    if len(layers) < settings.last_layers:
        raise RecipeError(
            f"model.last_layers: {settings.last_layers}, and this base has {len(layers)} layers; "
            "set fewer, or name weights in model.trained_weights"
        )
    last = {id(p) for layer in layers[-settings.last_layers :] for p in layer.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in last}


def _unfreeze(model: PreTrainedModel, names: Collection[str]) -> None:
    """Makes the parameters of these names trainable, and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def lora_targets(model: PreTrainedModel) -> list[str]:
    """Returns the names of the layers that LoRA adapts: all linear ones but the output.

    Two kinds are left out, because PEFT does not adapt them as layers:

    - Projections that are named as a mixture's experts. PEFT would adapt the experts' stacked
      weights in their place, without dropout, and with a copy of all of them in every pass.
    - The output projection of Mamba, whose kernels take its weight past the layer.

    Raises:
        RecipeError: None is left.
    """
    output = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output
    ]
    config = LoraConfig(target_modules=linear)
    with refused_input("model.adapter: LoRA does not fit this base (model.adapter full may)"):
        convert_peft_config_for_transformers(config, model, None)
    targets = [
        name
        for name in linear
        if name in set(config.target_modules or ()) and _takes_lora(config, model, name)
    ]
    if not targets:
        raise RecipeError(
            "model.adapter: this base has no linear layer that LoRA adapts; set model.adapter full"
        )
    return targets


def _takes_lora(config: LoraConfig, model: PreTrainedModel, name: str) -> bool:
    """Returns whether PEFT adapts a layer of this kind of model."""
    try:
        _check_lora_target_modules_mamba(config, model, name.rpartition(".")[2])
    except ValueError:
        return False
    return True


def load_for_training(model: PreTrainedModel, directory: Path) -> torch.nn.Module:
    """Loads a saved adapter into the base model to train it further.

    Args:
        model: The base model; it is changed in place.
        directory: The `adapter/` folder of a checkpoint.

    Returns:
        The model with its trainable part, in training mode.

    Raises:
        RunError: The directory holds no adapter, or one of another base.
    """
    loaded = load(model, directory)
    names = {name for name, _ in loaded.named_parameters()}
    if isinstance(loaded, PeftModel):
        names = {name for name in names if "lora_" in name}
    elif (embedding := soft_prompt.find_soft_prompt(loaded)) is not None:
        names = {
            name for name, parameter in loaded.named_parameters() if parameter is embedding.soft
        }
    elif (part := directory / PARTIAL_WEIGHTS).is_file():
        with safe_open(part, "pt") as file:
            names &= set(file.keys())
    _unfreeze(loaded, names)
    return cast(torch.nn.Module, loaded.train())


def load_weights(model: torch.nn.Module, directory: Path) -> None:
    """Loads saved weights into a model that `attach` has made trainable.

    Args:
        model: The model; the recipe decides how it goes on being trained, such as its dropout.
        directory: A PEFT directory, or that of a fully trained model.

    Raises:
        RunError: The directory does not hold exactly the weights that the model trains.
    """
    name = _weights_file(model)
    if not (directory / name).is_file():
        raise RunError(f"{directory}: no {name}, which this recipe's model.adapter goes on from")
    weights = load_file(directory / name)
    absent: set[str] = set()
    unexpected: set[str] = set()
    with refused_input(f"{directory}: these weights do not fit the model", RunError):
        if soft_prompt.find_soft_prompt(model) is not None:
            soft_prompt.load(cast(PreTrainedModel, model), directory)
        elif isinstance(model, PeftModel):
            own = get_peft_model_state_dict(model)
            absent, unexpected = own.keys() - weights.keys(), weights.keys() - own.keys()
            if not absent and not unexpected:
                set_peft_model_state_dict(model, weights)
        else:
            missing, others = map(set, model.load_state_dict(weights, strict=False))
            absent = missing & trainable_parameters(model).keys() - _tied_names(model, weights)
            unexpected = others
    if absent or unexpected:
        raise RunError(
            f"{directory}: these weights are of other layers than this recipe trains: "
            f"missing {sorted(absent)[:3]}, unexpected {sorted(unexpected)[:3]}"
        )


def layers_by_input(model: torch.nn.Module) -> list[list[Linear]]:
    """Groups the LoRA layers of a model by the input that they read.

    Returns:
        Layers that read the same input, by the names in `SHARED_INPUTS`, in one list; every other
        layer in a list of its own.
    """
    groups: list[list[Linear]] = []
    for parent in model.modules():
        children = {
            name: child for name, child in parent.named_children() if isinstance(child, Linear)
        }
        for names in SHARED_INPUTS:
            group = [children.pop(name) for name in names if name in children]
            if len({layer.in_features for layer in group}) == 1:
                groups.append(group)
            else:
                groups.extend([layer] for layer in group)
        groups.extend([layer] for layer in children.values())
    return groups


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Returns the parameters that are trained, by name, in the model's order."""
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def save(
    model: torch.nn.Module,
    weights: Mapping[str, torch.Tensor],
    directory: Path,
    base: str,
    revision: str | None,
    template: PromptTemplate,
) -> None:
    """Writes the trained part of a model to a directory.

    LoRA and soft prompts are saved as PEFT directories, and a part of the base's weights as a file
    of its own; all of them name the base. Full training is saved as a Hugging Face model directory.
    The template of the prompts is beside each of them (prompt.json).

    Args:
        model: The model in training.
        weights: Trained parameters by name, whole (gathered from all workers).
        directory: Where to write; created if it is missing.
        base: The base model.
        revision: Revision of the base model.
        template: Template of the prompts that it is trained on.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / PROMPT_FILE).write_text(template.to_json())
    if soft_prompt.find_soft_prompt(model) is not None:
        [soft] = weights.values()
        soft_prompt.save(soft, directory, base, revision)
    elif isinstance(model, PeftModel):
        state = get_peft_model_state_dict(model, state_dict=dict(weights))
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()},
            directory / ADAPTER_WEIGHTS,
            metadata={"format": "pt"},
        )
        config = model.peft_config[ADAPTER_NAME]
        config.base_model_name_or_path = base
        config.revision = revision
        # Written as an adapter for inference, as PEFT does; the one in memory is still trained.
        config.inference_mode = True
        config.save_pretrained(str(directory))
        config.inference_mode = False
    else:
        file = _weights_file(model)
        save_file(
            {
                name: tensor.contiguous()
                for name, tensor in {**persistent_buffers(model), **weights}.items()
            },
            directory / file,
            metadata={"format": "pt"},
        )
        if file == FULL_WEIGHTS:
            cast(PreTrainedModel, model).config.save_pretrained(directory)
        else:
            (directory / PARTIAL_CONFIG).write_text(
                json.dumps({"base_model_name_or_path": base, "revision": revision})
            )


def _weights_file(model: torch.nn.Module) -> str:
    """Returns the file that holds what a model trains."""
    if isinstance(model, PeftModel) or soft_prompt.find_soft_prompt(model) is not None:
        return ADAPTER_WEIGHTS
    trains_all = all(parameter.requires_grad for parameter in model.parameters())
    return FULL_WEIGHTS if trains_all else PARTIAL_WEIGHTS


def persistent_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns what a model directory holds beside the parameters, by name, on the CPU.

    Such are the biases by which the gates of DeepSeek-V3 balance experts. Training may change them.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in model.state_dict().items()
        if name not in parameters
    }


def load(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """Loads a saved adapter into the base model.

    Args:
        model: The base model; it is changed in place.
        directory: The `adapter/` folder of a checkpoint.

    Returns:
        The model with the adapter, in evaluation mode.

    Raises:
        RunError: The directory holds no adapter, or one of another base.
    """
    if (directory / ADAPTER_WEIGHTS).is_file():
        with refused_input(f"{directory}: this adapter does not fit the base model", RunError):
            if soft_prompt.is_soft_prompt(directory):
                soft_prompt.load(model, directory)
                return cast(PreTrainedModel, model.eval())
            return cast(PreTrainedModel, PeftModel.from_pretrained(model, str(directory)).eval())
    for file in (directory / PARTIAL_WEIGHTS, directory / FULL_WEIGHTS):
        if not file.is_file():
            continue
        with refused_input(f"{directory}: these weights do not fit the base model", RunError):
            weights = load_file(file)
            missing, unexpected = model.load_state_dict(weights, strict=False)
        if file.name == PARTIAL_WEIGHTS:
            missing = []  # the base has them
        # Tied weights are stored once. Checkpoints of earlier releases have no buffers: those of
        # the base stay.
        absent = set(missing) - _tied_names(model, weights) - set(persistent_buffers(model))
        if unexpected or absent:
            raise RunError(
                f"{directory}: these weights do not fit the base model: "
                f"missing {sorted(absent)}, unexpected {unexpected}"
            )
        return cast(PreTrainedModel, model.eval())
    raise RunError(
        f"{directory}: neither {ADAPTER_WEIGHTS} nor {FULL_WEIGHTS}; this is no adapter directory"
    )


def _tied_names(model: torch.nn.Module, names: Collection[str]) -> set[str]:
    """Returns the names of weights that are one with a weight of these names."""
    tensors = model.state_dict(keep_vars=True)
    given = {id(tensors[name]) for name in names if name in tensors}
    return {name for name, tensor in tensors.items() if id(tensor) in given}
