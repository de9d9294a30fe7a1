"""Generates answers greedily, freely or restricted to the candidates. Pure torch; no Ray, no I/O.

A ranked list comes from repeated questions: each asks again without the items that the model has
named before (paper Table 6).
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from cluster.errors import PlatformFault
from cluster.progress import Advance, unseen
from cprec.evaluation.answer_matching import Answer, match_exact, match_llara
from cprec.evaluation.candidate_scoring import PromptEncoder
from cprec.evaluation.decoding import CachedDecoder, RecomputingDecoder
from cprec.evaluation.scoring_check import DecodingMethod, choose_decoding

MAX_LISTED = 5
"""Longest ranked list: HR@5 needs no more items."""

Trie = dict[int, "Trie"]
"""A prefix tree of token ids: a mapping from each possible next token to the tree below it."""


def build_trie(answers: Sequence[Sequence[int]]) -> Trie:
    """Builds the prefix tree of answers, given as token ids with their end token."""
    root: Trie = {}
    for answer in answers:
        node = root
        for token in answer:
            node = node.setdefault(token, {})
    return root


@torch.inference_mode()
def greedy_decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    eos_token_id: int,
    max_new_tokens: int,
    tries: Sequence[Trie] | None = None,
    cached: bool = True,
) -> list[list[int]]:
    """Generates an answer to each prompt by taking the likeliest next token again and again.

    Args:
        model: The model, in evaluation mode.
        prompts: Token ids of each prompt.
        eos_token_id: Token that ends an answer; it also pads the prompts.
        max_new_tokens: Tokens of an answer, at most.
        tries: Prefix tree of the answers allowed for each prompt; None allows any answer.
        cached: Whether to keep a cache (`cprec.evaluation.decoding`).

    Returns:
        Token ids of each answer, without the end token.

    Raises:
        PlatformFault: A logit is NaN. The likeliest token is unknown, and the model is broken.
    """
    decoder = (CachedDecoder if cached else RecomputingDecoder)(model, prompts, eos_token_id)
    answers: list[list[int]] = [[] for _ in prompts]
    nodes = list(tries) if tries is not None else None
    unfinished = [True] * len(prompts)
    for _ in range(max_new_tokens):
        logits = decoder.next_logits()
        if nodes is not None:
            logits = _mask_disallowed(logits, nodes)
        if logits.isnan().any():
            raise PlatformFault(
                "an answer has NaN logits; look for overflow (model.precision) or a checkpoint "
                "that diverged"
            )
        next_tokens = logits.argmax(dim=-1).tolist()
        for row, token in enumerate(next_tokens):
            unfinished[row] = unfinished[row] and token != eos_token_id
            if unfinished[row]:
                answers[row].append(token)
            if nodes is not None:
                nodes[row] = nodes[row].get(token, {})
        if not any(unfinished):
            break
        decoder.append(next_tokens)
    return answers


def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    encoder: PromptEncoder,
    samples: pa.Table,
    titles: Sequence[str],
    batch_size: int,
    constrained: bool,
    max_new_tokens: int = 64,
    method: DecodingMethod | None = None,
    advance: Advance = unseen,
) -> list[list[Answer]]:
    """Generates a list of up to `MAX_LISTED` answers for each sample.

    Each answer after the first is to the same question without the items that were named before.
    An answer that names no candidate ends the list: asked again, the model would say the same.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        encoder: Encodes items as the model reads them.
        samples: Samples with the columns `history` and `candidates` (item indices).
        titles: Titles by item index.
        batch_size: Samples in one forward pass.
        constrained: Whether answers are restricted to titles of the candidates.
        max_new_tokens: Tokens of an answer; more if a candidate's title needs more.
        method: How to generate; None: as `choose_decoding` finds right for this model and these
            prompts.
        advance: Is called with how many more samples have all their answers.

    Returns:
        Each sample's answers, in the order in which they were given.
    """
    candidates = samples["candidates"].to_pylist()
    histories = samples["history"].to_pylist()
    given: list[list[Answer]] = [[] for _ in candidates]
    open_rows = list(range(len(candidates)))
    for number in range(MAX_LISTED):
        last_round = number == MAX_LISTED - 1
        for start in range(0, len(open_rows), batch_size):
            rows = open_rows[start : start + batch_size]
            answers = [[encoder.encode_answer(i) for i in candidates[row]] for row in rows]
            room = max(max_new_tokens, *(len(ids) for row_ids in answers for ids in row_ids))
            prompts = [
                encoder.encode_prompt(histories[row], candidates[row], room)[0] for row in rows
            ]
            tries = [build_trie(row_ids) for row_ids in answers] if constrained else None
            eos_token_id = answers[0][0][-1]
            if method is None:
                method = choose_decoding(model, max(map(len, prompts)) + room)
            generated = greedy_decode(model, prompts, eos_token_id, room, tries, method.fast)
            for row, ids, row_ids in zip(rows, generated, answers, strict=True):
                answer = _read_answer(tokenizer, ids, row_ids, candidates[row], titles, constrained)
                given[row].append(answer)
                # Without candidates the row is closed below.
                candidates[row] = (
                    []
                    if answer.exact is None
                    else [item for item in candidates[row] if item != answer.exact]
                )
            advance(sum(not candidates[row] or last_round for row in rows))
        open_rows = [row for row in open_rows if candidates[row]]
    return given


def _read_answer(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    candidate_ids: Sequence[Sequence[int]],
    candidates: Sequence[int],
    titles: Sequence[str],
    constrained: bool,
) -> Answer:
    """Finds out which candidates a generated answer names.

    Args:
        tokenizer: The model's tokenizer.
        ids: Token ids of the answer, without the end token.
        candidate_ids: Token ids of each candidate's title, with the end token.
        candidates: Item indices of the candidates.
        titles: Titles by item index.
        constrained: Whether the answer was restricted to the candidates. Then its tokens are those
            of a candidate, which they name; of several with the same tokens, the first.
    """

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    text = decode(ids)
    shown = [titles[item] for item in candidates]
    decoded = [decode(tokens[:-1]) for tokens in candidate_ids]
    llara = match_llara(text, shown, decoded)
    exact = match_exact(text, shown, decoded)
    if constrained:
        exact = [list(tokens[:-1]) for tokens in candidate_ids].index(list(ids))
    return Answer(
        text,
        None if exact is None else candidates[exact],
        None if llara is None else candidates[llara],
    )


def _mask_disallowed(logits: torch.Tensor, nodes: Sequence[Trie]) -> torch.Tensor:
    """Sets the logits of tokens that cannot continue an answer to -inf.

    Args:
        logits: Logits of the next token [rows, vocabulary].
        nodes: Each row's position in its prefix tree; empty for an answer that has ended, whose
            further tokens are ignored.
    """
    allowed = torch.zeros_like(logits, dtype=torch.bool)
    for row, node in enumerate(nodes):
        allowed[row, list(node)] = True
        if not node:
            allowed[row] = True
    return logits.masked_fill(~allowed, float("-inf"))
