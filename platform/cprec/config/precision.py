"""Tells where a recipe's precision is slow on the processor that computes in it."""

from cprec.config.recipe import Recipe

SLOW_BF16 = (
    "model.precision: bf16 is computed by this machine's CPU, which has no instructions for it and "
    "takes tens of times as long as in fp32; give --model.precision fp32, or "
    "--train.gpus_per_worker where the workers have GPUs"
)


def slow_precision_notice(recipe: Recipe) -> str | None:
    """Returns a line for people where bf16 is computed by a CPU without instructions for it.

    Args:
        recipe: The recipe. One that asks for GPUs gets no line: nothing is known here of the nodes.
    """
    gpus = (
        recipe.train.gpus_per_worker,
        recipe.search.gpus_per_trial,
        recipe.serve.gpus_per_replica,
    )
    if recipe.model.precision != "bf16" or any(gpus):
        return None
    # Imported late: most recipes need no look at the processor.
    import torch

    if torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return SLOW_BF16
