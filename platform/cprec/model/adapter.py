"""What is trained: a LoRA adapter on all linear layers, or every weight. Saved as the `adapter/` directory of a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from cluster.errors import RunError
from cprec.config.recipe import ModelSettings

ADAPTER_WEIGHTS = "adapter_model.safetensors"
FULL_WEIGHTS = "model.safetensors"
ADAPTER_NAME = "default"
"""PEFT's name for a model's first adapter."""


def attach(model: PreTrainedModel, settings: ModelSettings, seed: int) -> torch.nn.Module:
    """The model with its trainable part, in training mode; equal on every worker because the seed sets the initial adapter."""
    torch.manual_seed(seed)
    if settings.adapter == "full":
        model.requires_grad_(True)
        return cast(torch.nn.Module, model.train())
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trained: torch.nn.Module = get_peft_model(model, config)
    return trained.train()


def load_for_training(model: PreTrainedModel, directory: Path) -> torch.nn.Module:
    """The model with a saved adapter that is trained further, in training mode. Raises RunError as `load` does."""
    loaded = load(model, directory)
    if not isinstance(loaded, PeftModel):
        whole: torch.nn.Module = loaded.requires_grad_(True).train()
        return whole
    for name, parameter in loaded.named_parameters():
        parameter.requires_grad_("lora_" in name)
    trained: torch.nn.Module = loaded.train()
    return trained


def fuse_lora(model: torch.nn.Module) -> int:
    """Let every LoRA layer add to its frozen layer's output within the matrix product of B: PEFT scales and adds in two further passes over that
    output, in every layer. The same to rounding. Returns the number of layers.

    Not under ZeRO 3, which gathers B only while its own module runs.
    """
    layers = [
        m
        for m in model.modules()
        if isinstance(m, Linear)
        and set(m.lora_A) == {ADAPTER_NAME}
        and not m.lora_variant
        and not m.lora_bias[ADAPTER_NAME]
    ]
    for layer in layers:
        layer.forward = MethodType(_fused_forward, layer)  # type: ignore[method-assign]
    return len(layers)


def _fused_forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if layer.disable_adapters or layer.merged or args or kwargs:
        return cast(torch.Tensor, type(layer).forward(layer, x, *args, **kwargs))
    result = layer.base_layer(x)
    weight = layer.lora_B[ADAPTER_NAME].weight
    low = layer.lora_A[ADAPTER_NAME](layer.lora_dropout[ADAPTER_NAME](x.to(weight.dtype)))
    added = torch.addmm(
        result.flatten(0, -2).to(weight.dtype),
        low.flatten(0, -2),
        weight.t(),
        alpha=layer.scaling[ADAPTER_NAME],
    )
    return added.view_as(result).to(result.dtype)


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name, in a fixed order."""
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
    """Write `directory`: a PEFT directory that names its base, or for full training a Hugging Face model directory.

    weights: the trained parameters by name, whole (gathered from all workers).
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
        config.base_model_name_or_path, config.revision, config.inference_mode = (
            base,
            revision,
            True,
        )
        config.save_pretrained(str(directory))
        config.inference_mode = False
    else:
        save_file(
            {name: tensor.contiguous() for name, tensor in weights.items()},
            directory / FULL_WEIGHTS,
            metadata={"format": "pt"},
        )
        cast(PreTrainedModel, model).config.save_pretrained(directory)


def load(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """The base model with a saved adapter, in evaluation mode. Raises RunError when the directory holds none or one of another base."""
    if (directory / ADAPTER_WEIGHTS).is_file():
        try:
            return cast(PreTrainedModel, PeftModel.from_pretrained(model, str(directory)).eval())
        except (RuntimeError, ValueError) as error:
            raise RunError(
                f"{directory}: this adapter does not fit the base model: {error}"
            ) from None
    if (directory / FULL_WEIGHTS).is_file():
        missing, unexpected = model.load_state_dict(
            load_file(directory / FULL_WEIGHTS), strict=False
        )
        tied = set(getattr(model, "_tied_weights_keys", None) or ())
        if unexpected or set(missing) - tied:
            raise RunError(
                f"{directory}: these weights do not fit the base model: missing {sorted(set(missing) - tied)}, unexpected {unexpected}"
            )
        return cast(PreTrainedModel, model.eval())
    raise RunError(
        f"{directory}: neither {ADAPTER_WEIGHTS} nor {FULL_WEIGHTS}; this is no adapter directory"
    )
