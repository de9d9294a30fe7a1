"""Greedy answers, free or held to a trie of the candidates, and the ranked lists that come of asking again without what was answered (paper Table 6).

Pure torch; no Ray, no I/O. Prompts of a batch are padded on the left and share one cache of keys and values, which grows by a token at a time.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from cprec.evaluate.answer_matching import match_exact
from cprec.evaluate.candidate_scoring import PromptEncoder

MAX_LISTED = 5
"""Items of a ranked list: HR@5 needs no more."""

Trie = dict[int, "Trie"]


def build_trie(answers: Sequence[Sequence[int]]) -> Trie:
    """Answers (token ids, their end token included) as nested mappings from a token to what may follow it."""
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
) -> list[list[int]]:
    """The likeliest next token, again and again, up to and without the end token; `longest` tokens at most. tries: what each answer is held to."""
    width, device = max(map(len, prompts)), model.device
    ids = torch.tensor(
        [[eos_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device
    )
    mask = torch.tensor(
        [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device
    )
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    answers: list[list[int]] = [[] for _ in prompts]
    nodes = list(tries) if tries is not None else None
    going = [True] * len(prompts)
    cache = None
    for _ in range(max_new_tokens):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, logits = out.past_key_values, out.logits[:, -1].float()
        if nodes is not None:
            logits = _mask_disallowed(logits, nodes)
        chosen = logits.argmax(dim=-1).tolist()
        for row, token in enumerate(chosen):
            going[row] = going[row] and token != eos_token_id
            if going[row]:
                answers[row].append(token)
            if nodes is not None:
                nodes[row] = nodes[row].get(token, {})
        if not any(going):
            break
        ids = torch.tensor(chosen, device=device)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
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
) -> list[list[str]]:
    """The texts that a model gives for each sample: an answer, then another one without the item that it named, up to LISTED of them.

    samples: columns history and candidates (item indices); titles: by item index. A list ends early with an answer that names no candidate:
    asked again, the model would say the same.
    """
    candidates = samples["candidates"].to_pylist()
    histories = samples["history"].to_pylist()
    texts: list[list[str]] = [[] for _ in candidates]
    open_rows = list(range(len(candidates)))
    for _ in range(MAX_LISTED):
        for start in range(0, len(open_rows), batch_size):
            rows = open_rows[start : start + batch_size]
            answers = [[encoder.encode_answer(i) for i in candidates[row]] for row in rows]
            room = max(max_new_tokens, *(len(answer) for of_row in answers for answer in of_row))
            prompts = [
                encoder.encode_prompt(histories[row], candidates[row], room)[0] for row in rows
            ]
            held = [build_trie(of_row) for of_row in answers] if constrained else None
            for row, ids in zip(
                rows, greedy_decode(model, prompts, answers[0][0][-1], room, held), strict=True
            ):
                text = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
                texts[row].append(text)
                named = match_exact(text, [titles[i] for i in candidates[row]])
                candidates[row] = (
                    []
                    if named is None
                    else [i for place, i in enumerate(candidates[row]) if place != named]
                )
        open_rows = [row for row in open_rows if candidates[row]]
    return texts


def _mask_disallowed(logits: torch.Tensor, nodes: Sequence[Trie]) -> torch.Tensor:
    """Logits of what each answer may go on with; an answer that has ended may say anything, because nobody listens."""
    allowed = torch.zeros_like(logits, dtype=torch.bool)
    for row, node in enumerate(nodes):
        allowed[row, list(node)] = True
        if not node:
            allowed[row] = True
    return logits.masked_fill(~allowed, float("-inf"))
