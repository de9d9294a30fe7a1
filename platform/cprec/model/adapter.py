"""The trained part of a model: a LoRA adapter on all linear layers, or every weight.

It is saved as the folder `adapter/` of a checkpoint.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cluster.errors import RecipeError, RunError
from cprec.config.sections.model import ModelSettings
from cprec.encode.prompt import PROMPT_FILE, PromptTemplate
from cprec.model.adapter_files import ADAPTER_WEIGHTS
from cprec.model.libraries import refused_input

FULL_WEIGHTS = "model.safetensors"
"""File that holds all weights of a model, where every weight is trained."""
ADAPTER_NAME = "default"
"""PEFT's name for a model's first adapter."""
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of sibling layers that read the same input, in the order in which models call them."""


def attach(model: PreTrainedModel, settings: ModelSettings, seed: int) -> torch.nn.Module:
    """Makes a base model trainable: adds a fresh LoRA adapter, or unfreezes every weight.

    Args:
        model: The base model; it is changed in place.
        settings: The recipe's section `model`.
        seed: Seed of the adapter's first weights, so that they are equal on every worker.

    Returns:
        The model with its trainable part, in training mode.
    """
    torch.manual_seed(seed)
    if settings.adapter == "full":
        model.requires_grad_(True)
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
    if not isinstance(loaded, PeftModel):
        full: torch.nn.Module = loaded.requires_grad_(True).train()
        return full
    for name, parameter in loaded.named_parameters():
        parameter.requires_grad_("lora_" in name)
    adapted: torch.nn.Module = loaded.train()
    return adapted


def load_weights(model: torch.nn.Module, directory: Path) -> None:
    """Loads saved weights into a model that `attach` has made trainable.

    Args:
        model: The model; the recipe decides how it goes on being trained, such as its dropout.
        directory: A PEFT directory, or that of a fully trained model.

    Raises:
        RunError: The directory does not hold exactly the weights that the model trains.
    """
    name = ADAPTER_WEIGHTS if isinstance(model, PeftModel) else FULL_WEIGHTS
    if not (directory / name).is_file():
        raise RunError(f"{directory}: no {name}, which this recipe's model.adapter goes on from")
    weights = load_file(directory / name)
    with refused_input(f"{directory}: these weights do not fit the model", RunError):
        if isinstance(model, PeftModel):
            own = get_peft_model_state_dict(model)
            absent, unexpected = own.keys() - weights.keys(), weights.keys() - own.keys()
            if not absent and not unexpected:
                set_peft_model_state_dict(model, weights)
        else:
            absent, unexpected = map(set, model.load_state_dict(weights, strict=False))
            absent -= _tied_names(cast(PreTrainedModel, model), weights)
            absent -= set(persistent_buffers(model))
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

    LoRA is saved as a PEFT directory that names its base. Full training is saved as a Hugging Face
    model directory. Both name the template of the prompts (prompt.json).

    Args:
        model: The model in training.
        weights: Trained parameters by name, whole (gathered from all workers).
        directory: Where to write; created if it is missing.
        base: The base model, which the PEFT directory names.
        revision: Revision of the base model.
        template: Template of the prompts that it is trained on.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / PROMPT_FILE).write_text(template.to_json())
    if isinstance(model, PeftModel):
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
        save_file(
            {
                name: tensor.contiguous()
                for name, tensor in {**persistent_buffers(model), **weights}.items()
            },
            directory / FULL_WEIGHTS,
            metadata={"format": "pt"},
        )
        cast(PreTrainedModel, model).config.save_pretrained(directory)


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
            return cast(PreTrainedModel, PeftModel.from_pretrained(model, str(directory)).eval())
    if (directory / FULL_WEIGHTS).is_file():
        with refused_input(f"{directory}: these weights do not fit the base model", RunError):
            weights = load_file(directory / FULL_WEIGHTS)
            missing, unexpected = model.load_state_dict(weights, strict=False)
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
