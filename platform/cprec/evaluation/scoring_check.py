"""Checks on the actual model that fast scoring and generation are right. Pure torch.

Fast are many queries in one row, all candidates in one pass, and generation with a cache. What is
not right for a model is done a slower way. The slowest is right for every causal model; a model for
which that is not right either is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from cluster.errors import RecipeError
from cprec.evaluation.candidate_rows import PassKind, Query, compute_logits, prepare_model
from cprec.evaluation.decoding import CachedDecoder, RecomputingDecoder
from cprec.model import self_check

ANSWER_TOKENS = 5
"""Tokens of a probe's answer."""


@dataclass(frozen=True)
class ScoringMethod:
    """How a model scores candidates.

    Attributes:
        kind: The fastest kind of pass that is right.
        reason: Why faster ones are not; empty if it is the fastest of all.
    """

    kind: PassKind
    reason: str = ""

    @property
    def notice(self) -> str:
        """How scoring is slower than it could be, and why; empty for the fastest kind."""
        if self.kind is PassKind.PACKED:
            return ""
        notices = {
            PassKind.MASKED: "candidates are kept apart by a dense mask, which is slower",
            PassKind.ALONE: "each candidate is scored on its own, which is much slower",
        }
        return f"{notices[self.kind]}: {self.reason}"


@dataclass(frozen=True)
class DecodingMethod:
    """How a model generates answers.

    Attributes:
        fast: Whether it may use a cache and padding on the left, as the answers stay the same.
        reason: Why it may not; empty if it may.
    """

    fast: bool
    reason: str = ""


@torch.inference_mode()
def choose_scoring(model: Any, max_tokens: int) -> ScoringMethod:
    """Tries which kinds of passes give candidates the scores that they have alone.

    A handful of passes over short random rows; neither the random state nor the mode of the model
    changes.

    Args:
        model: The model.
        max_tokens: Tokens of the longest prompt with its answer.

    Raises:
        RecipeError: The model is not causal, so no way is right.
    """
    reasons: list[str] = []
    with _evaluation_mode(model):
        probe = _probe_alone(model, max_tokens)
        for kind in (PassKind.PACKED, PassKind.MASKED):
            fault = self_check.run_check(partial(probe.find_fault, model, kind))
            if fault is None:
                return ScoringMethod(kind, reasons[0] if reasons else "")
            reasons.append(fault)
    return ScoringMethod(PassKind.ALONE, reasons[-1])


@dataclass(frozen=True)
class _Probe:
    """Random tokens, and what an answer's logits are alone.

    Attributes:
        prompt: A prompt.
        answer: An answer to it.
        others: What stands beside them in a row, twice: a longer prompt, and two answers.
        expected: Logits that predict the answer, alone.
        effect: Relative difference that it makes to see the one of the others or the other.
        limits: What rounding may change.
    """

    prompt: list[int]
    answer: list[int]
    others: list[tuple[list[int], list[int], list[int]]]
    expected: torch.Tensor
    effect: float
    limits: self_check.Rounding

    def find_fault(self, model: Any, kind: PassKind) -> str | None:
        """Returns what is wrong with a kind of pass, or None if it is right."""
        found = []
        with prepare_model(model, kind):
            for longer, before, behind in self.others:
                queries = [
                    Query(longer, [before, behind, self.answer]),
                    Query(self.prompt, [before, self.answer, behind]),
                    Query(longer, [self.answer]),
                ]
                logits, targets = compute_logits(model, queries, kind)
                found.append(logits[torch.from_numpy(targets.of_answer(4)).to(logits.device)])
        first, second = found
        return self_check.find_difference(first, second, self.expected, self.effect, self.limits)


def _probe_alone(model: Any, max_tokens: int) -> _Probe:
    """Draws a probe, and tries that answers are right alone, in padded rows.

    Raises:
        RecipeError: They are not.
    """
    length = _prompt_length(model, max_tokens)
    prompt, longer, stranger, first, second, answer, *behind = self_check.random_tokens(
        model, length, length + 3, length + 3, *[ANSWER_TOKENS] * 5
    )
    limits = self_check.rounding(model)
    expected = _logits_alone(model, prompt, answer)
    # Padded on the right, as each candidate has it that is scored on its own; and with the first
    # and the second answer in plain sight of the last.
    queries = [
        Query(prompt, [answer]),
        Query(prompt, [answer + behind[0] + first]),
        Query(prompt + first, [answer]),
        Query(prompt + second, [answer]),
    ]
    logits, targets = compute_logits(model, queries, PassKind.ALONE)
    padded, causal, behind_first, behind_second = (
        logits[torch.from_numpy(targets.of_answer(number)[: len(answer)]).to(logits.device)]
        for number in range(4)
    )
    effect = self_check.relative_difference(behind_second, behind_first)
    for slow in (padded, causal):
        if fault := self_check.find_inequality(slow, expected, effect, limits):
            raise RecipeError(
                "model.base: later tokens change what this model predicts before them "
                f"({fault}); it is not a causal language model, give one that is"
            )
    others = [(longer, first, behind[0]), (stranger, second, behind[1])]
    return _Probe(prompt, answer, others, expected, effect, limits)


@torch.inference_mode()
def choose_decoding(model: Any, max_tokens: int) -> DecodingMethod:
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

        fault = self_check.run_check(compare)
    return DecodingMethod(fault is None, fault or "")


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
