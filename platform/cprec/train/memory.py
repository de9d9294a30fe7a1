"""How a model is made to fit into memory: ZeRO stage, recomputed activations, tokens of a row."""

import torch

from cluster import deepspeed_presets as presets
from cprec.config.recipe import TrainSettings
from cprec.model import self_check


def pack_tokens(settings: TrainSettings) -> int:
    """Returns the tokens of a packed row: the recipe's, or what suits the device."""
    return settings.pack_tokens or (4096 if torch.cuda.is_available() else 2048)


def choose_memory_settings(
    model: torch.nn.Module, settings: TrainSettings, world_size: int
) -> tuple[int, bool]:
    """Chooses how a model is made to fit into memory.

    What the recipe leaves open is decided by an estimate of what the GPU's memory can hold.

    Args:
        model: The model.
        settings: The recipe's section `train`.
        world_size: Number of workers.

    Returns:
        (ZeRO stage, whether activations are recomputed in the backward pass).
    """
    stage = settings.zero_stage
    recompute = settings.recompute == "always"
    if not torch.cuda.is_available():
        return (1 if stage is None else stage), recompute
    size = model_dimensions(model)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    memory_bytes = float(properties.total_memory)
    tokens = pack_tokens(settings)  # a padded micro-batch has about as many
    if stage is None:
        stage = presets.choose_zero_stage(size, world_size, tokens, memory_bytes)
    if settings.recompute == "auto":
        recompute = presets.needs_recompute(size, stage, world_size, tokens, memory_bytes)
    return stage, recompute


def model_dimensions(model: torch.nn.Module) -> presets.ModelSize:
    """Returns the sizes that decide how much memory the training of a model takes.

    Widths are taken from the layers' own matrices where they are: configurations name them in many
    ways, or not at all.
    """
    parameters = [(p.numel(), p.requires_grad, p.element_size()) for p in model.parameters()]
    config = self_check.text_config(model)
    hidden_size = int(config.hidden_size)
    widths = [
        int(size)
        for layers in model.modules()
        if isinstance(layers, torch.nn.ModuleList) and len(layers) == config.num_hidden_layers
        for weight in layers[0].parameters()
        if weight.dim() >= 2
        for size in weight.shape
    ]
    return presets.ModelSize(
        num_parameters=sum(count for count, _, _ in parameters),
        num_trainable=sum(count for count, trained, _ in parameters if trained),
        num_layers=int(config.num_hidden_layers),
        hidden_size=hidden_size,
        intermediate_size=max(widths, default=4 * hidden_size),
        bytes_per_parameter=max(size for _, _, size in parameters),
    )
