"""Measures on the actual model whether a fast forward pass gives what an exact one gives.

A layer can drop what keeps samples apart without a word: its attention ignores an argument, or its
state runs on from one sample into the next. No list of architectures tells all of them. So before
anything is computed, a few short passes over random tokens are compared (docs/decisions/014).
Packed rows are tried in `cprec.train.pack_check`, scores and generation in
`cprec.evaluation.scoring_check`. Pure torch.

Two comparisons are made:

- *Invariance*: the tokens that must not be seen are replaced by others. Nothing else changes, not
  even a shape, so a dense model gives bitwise the same result, in bf16 too.
- *Equality* with the exact pass, up to rounding. It finds wrong positions and lost windows.

Fresh weights make a model nearly linear, and then it barely shows what it sees. Differences are
therefore measured against the spread of the logits, and against what a real leak would change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

MARGIN = 10
"""A difference passes only below this fraction of what a leak changes."""
PROBE_TOKENS = 24
"""Tokens of a probe, beyond the window of the attention where that matters."""
WINDOW_FIELDS = (
    "sliding_window",
    "attention_chunk_size",
    "window_size",
    "attention_window_size",
    "local_attention",
)
"""Fields of configurations that hold the number of tokens that a layer sees."""


@dataclass(frozen=True)
class Rounding:
    """What rounding alone may change, as a fraction of the spread of the logits.

    Attributes:
        invariance: Between two passes of the same shape. A dense model changes nothing; a mixture
            of experts multiplies matrices of other shapes.
        equality: Between two passes of different shapes, at least.
        ceiling: Between two passes of different shapes, at most.
    """

    invariance: float
    equality: float
    ceiling: float


FULL_PRECISION = Rounding(invariance=2e-6, equality=2e-5, ceiling=2e-3)
HALF_PRECISION = Rounding(invariance=2e-3, equality=4e-2, ceiling=0.15)


def rounding(model: Any) -> Rounding:
    """Returns what rounding may change in a model of its data type."""
    return FULL_PRECISION if model.dtype == torch.float32 else HALF_PRECISION


def text_config(model: Any) -> Any:
    """Returns the configuration of the language model, also of a model with several parts."""
    return model.config.get_text_config()


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """Finds the list of the decoder layers of a model, whatever its name; empty if it has none."""
    count = int(text_config(model).num_hidden_layers)
    return next(
        (
            list(module)
            for module in model.modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == count
        ),
        [],
    )


def relative_difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns how far logits are from the expected ones, in units of their spread.

    A constant on all logits of a token changes no probability, so it does not count. The mean over
    the tokens is returned, so that one expert that was chosen otherwise does not decide.

    Args:
        logits: Logits [tokens, vocabulary].
        expected: What they should be.
    """
    x, y = (part.float() - part.float().mean(dim=-1, keepdim=True) for part in (logits, expected))
    spread = y.pow(2).mean().sqrt()
    difference = float((x - y).pow(2).mean(dim=-1).sqrt().mean() / spread)
    return difference if np.isfinite(difference) else float("inf")


def find_difference(
    actual: torch.Tensor,
    others_changed: torch.Tensor,
    expected: torch.Tensor,
    effect: float,
    limits: Rounding,
) -> str | None:
    """Returns what is wrong with the logits of a fast pass, or None if they are right.

    Args:
        actual: Logits of the fast pass [tokens, vocabulary].
        others_changed: The same after the tokens that must not be seen were replaced.
        expected: Logits of the exact pass.
        effect: Relative difference that replacing these tokens makes where they are seen.
        limits: What rounding may change.
    """
    leak = relative_difference(others_changed, actual)
    if effect < MARGIN * limits.invariance:
        return "the model barely reacts to other tokens, so that nothing can be told"
    if leak > min(max(limits.invariance, effect / (10 * MARGIN)), limits.equality):
        return f"tokens of others change the logits by {leak:.1%} of their spread"
    return find_inequality(actual, expected, effect, limits)


def find_inequality(
    actual: torch.Tensor, expected: torch.Tensor, effect: float, limits: Rounding
) -> str | None:
    """Returns by how much logits differ from the exact ones, or None if it is rounding.

    Args:
        actual: Logits [tokens, vocabulary].
        expected: Logits of the exact pass.
        effect: Relative difference that a leak would make.
        limits: What rounding may change.
    """
    difference = relative_difference(actual, expected)
    if difference > min(max(limits.equality, effect / MARGIN), limits.ceiling):
        return f"logits differ from those of the sample alone by {difference:.1%} of their spread"
    return None


def run_check(check: Callable[[], str | None]) -> str | None:
    """Returns what a check finds; an error of the model is a finding too.

    Raises:
        torch.OutOfMemoryError: It says nothing about the model.
    """
    try:
        return check()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model raises in a pass that it was not written for
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def probe_length(model: Any, max_tokens: int) -> int:
    """Returns the tokens of a probe: more than any window that a sample can exceed.

    Args:
        model: The model.
        max_tokens: Tokens of the longest sample.
    """
    config = text_config(model)
    windows = [getattr(config, name, None) for name in WINDOW_FIELDS]
    exceeded = [w for w in windows if isinstance(w, int) and 0 < w < max_tokens]
    return min(max(exceeded, default=0) + PROBE_TOKENS, max_tokens)


def random_tokens(model: Any, *lengths: int) -> list[list[int]]:
    """Draws sequences of random tokens of the model's vocabulary, the same in every process.

    Special tokens and placeholders of pictures stand at the ends of vocabularies, so those are left
    out.
    """
    size = int(text_config(model).vocab_size)
    generator = np.random.default_rng(0)
    return [generator.integers(size // 8, max(size // 2, 1), n).tolist() for n in lengths]
