"""The trained part of a model: a LoRA adapter on all linear layers, or every weight.

It is saved as the folder `adapter/` of a checkpoint.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils import get_peft_model_state_dict
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cluster.errors import RecipeError, RunError
from cprec.config.recipe import ModelSettings
from cprec.model.libraries import refused_input

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""File that holds a LoRA adapter's weights."""
FULL_WEIGHTS = "model.safetensors"
"""File that holds all weights of a model, where every weight is trained."""
ADAPTER_NAME = "default"
"""PEFT's name for a model's first adapter."""


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


def fuse_lora(model: torch.nn.Module) -> int:
    """Makes every LoRA layer add to its frozen layer's output within the matrix product of B.

    PEFT scales and adds in two further passes over that output, in every layer. The result is the
    same up to rounding. It does not work under ZeRO 3, which gathers B only while the module of B
    runs.

    Returns:
        The number of layers that were changed.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, Linear)
        and set(module.lora_A) == {ADAPTER_NAME}
        and not module.lora_variant
        and not module.lora_bias[ADAPTER_NAME]
    ]
    for layer in layers:
        layer.forward = MethodType(_fused_forward, layer)  # type: ignore[method-assign]
    return len(layers)


def _fused_forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Computes a LoRA layer's output as base(x) + scaling * (A(x) B^T), the sum in one `addmm`."""
    if layer.disable_adapters or layer.merged or args or kwargs:
        return cast(torch.Tensor, type(layer).forward(layer, x, *args, **kwargs))
    base_output = layer.base_layer(x)
    weight_b = layer.lora_B[ADAPTER_NAME].weight
    low_rank = layer.lora_A[ADAPTER_NAME](layer.lora_dropout[ADAPTER_NAME](x.to(weight_b.dtype)))
    output = torch.addmm(
        base_output.flatten(0, -2).to(weight_b.dtype),
        low_rank.flatten(0, -2),
        weight_b.t(),
        alpha=layer.scaling[ADAPTER_NAME],
    )
    return output.view_as(base_output).to(base_output.dtype)


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
) -> None:
    """Writes the trained part of a model to a directory.

    LoRA is saved as a PEFT directory that names its base. Full training is saved as a Hugging Face
    model directory.

    Args:
        model: The model in training.
        weights: Trained parameters by name, whole (gathered from all workers).
        directory: Where to write; created if it is missing.
        base: The base model, which the PEFT directory names.
        revision: Revision of the base model.
    """
    directory.mkdir(parents=True, exist_ok=True)
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
