"""Checks on the actual model that fast scoring and generation are right. Pure torch.

Fast are all candidates in one pass, and generation with a cache. What is not right for a model is
done the slow way, which is right for every causal model; a model for which that is not right
either is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from cluster.errors import RecipeError
from cprec.evaluate.candidate_rows import Query, answer_logits, compute_logits, lay_out
from cprec.evaluate.decoding import CachedDecoder, RecomputingDecoder
from cprec.model import self_check

ANSWER_TOKENS = 5
"""Tokens of a probe's answer."""


@dataclass(frozen=True)
class Way:
    """How a model scores or generates.

    Attributes:
        fast: Whether the fast way is right.
        reason: Why it is not; empty if it is.
    """

    fast: bool
    reason: str = ""


@torch.inference_mode()
def choose_scoring(model: Any, max_tokens: int) -> Way:
    """Tries whether all candidates can share a pass.

    A handful of passes over short random rows; neither the random state nor the mode of the model
    changes.

    Args:
        model: The model.
        max_tokens: Tokens of the longest prompt with its answer.

    Raises:
        RecipeError: The model is not causal, so no way is right.
    """
    with _evaluation_mode(model):
        length = _prompt_length(model, max_tokens)
        prompt, longer, first, second, answer, other = self_check.random_tokens(
            model, length, length + 3, *[ANSWER_TOKENS] * 4
        )
        limits = self_check.rounding(model)
        expected = _logits_alone(model, prompt, answer)
        # Padded on the right, as each candidate has it that is scored on its own; and with the
        # first and the second answer in plain sight of the last.
        rows = lay_out(
            [
                Query(prompt, [answer]),
                Query(prompt, [answer + other + first]),
                Query(prompt + first, [answer]),
                Query(prompt + second, [answer]),
            ]
        )
        logits = compute_logits(model, rows, one_pass=False)
        padded, causal, behind_first, behind_second = (
            answer_logits(logits, rows, row, 1)[: len(answer)] for row in range(4)
        )
        effect = self_check.relative_difference(behind_second, behind_first)
        for slow in (padded, causal):
            if fault := self_check.find_inequality(slow, expected, effect, limits):
                raise RecipeError(
                    "model.base: later tokens change what this model predicts before them "
                    f"({fault}); it is no causal language model, give one that is"
                )

        def compare() -> str | None:
            # The row is padded on the left too, beside that of a longer prompt.
            found = []
            for before in (first, second):
                queries = [
                    Query(prompt, [before, answer, other]),
                    Query(longer, [before, other, answer]),
                ]
                rows = lay_out(queries)
                logits = compute_logits(model, rows, one_pass=True)
                found.append(answer_logits(logits, rows, 0, 2))
            return self_check.find_difference(found[0], found[1], expected, effect, limits)

        fault = self_check.attempt(compare)
    return Way(fault is None, fault or "")


@torch.inference_mode()
def choose_decoding(model: Any, max_tokens: int) -> Way:
    """Tries whether a cache and padding on the left change what is generated.

    Args:
        model: The model.
        max_tokens: Tokens of the longest prompt with its answer.
    """
    with _evaluation_mode(model):
        length = _prompt_length(model, max_tokens)
        prompt, longer, padding, tokens = self_check.random_tokens(
            model, length, length + ANSWER_TOKENS, ANSWER_TOKENS, 2 * ANSWER_TOKENS
        )
        limits = self_check.rounding(model)
        effect = self_check.relative_difference(
            _logits_alone(model, padding + prompt, tokens), _logits_alone(model, prompt, tokens)
        )

        def compare() -> str | None:
            found = []
            for decoder_class in (CachedDecoder, RecomputingDecoder):
                decoder = decoder_class(model, [prompt, longer], padding[0])
                steps = []
                for step in range(ANSWER_TOKENS):
                    steps.append(decoder.next_logits())
                    decoder.append(tokens[2 * step : 2 * step + 2])
                found.append(torch.cat(steps))
            return self_check.find_inequality(found[0], found[1], effect, limits)

        fault = self_check.attempt(compare)
    return Way(fault is None, fault or "")


def _prompt_length(model: Any, max_tokens: int) -> int:
    """Returns the tokens of a probe's prompt, which leave room for what stands behind it."""
    longest = self_check.probe_length(model, max_tokens)
    return max(min(longest, max_tokens - 4 * ANSWER_TOKENS), 2)


def _logits_alone(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Returns the logits that predict an answer, by a plain pass over nothing else."""
    ids = torch.tensor([prompt + answer], device=model.device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1]


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Sets a model to evaluation mode, and every module back to the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
