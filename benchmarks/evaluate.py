"""Compares scoring 20 candidates with what peers do, in users per second.

    python benchmarks/evaluate.py [toy] [smollm2] [--rounds N]

- packed: ours, many users in one row (`cprec.evaluation.candidate_scoring`).
- prefix: the tightest way with transformers alone. Prompts, sorted by length and padded on the
  left, are computed once with a cache; the cache is repeated for each candidate, and all answers
  take one more pass, padded on the right.
- rows: a padded row per candidate, sorted by length, as lm-evaluation-harness scores choices.
- generate: LLaRA's way to a ranking of five. `generate` answers, that item is removed, and the
  shorter prompt is generated from again, without anything kept. It is constrained to the
  candidates, so that every answer is a title and ends where the title ends: unconstrained, random
  weights would generate up to the limit of 64 tokens and look slower than a trained model.

The weights are random, because only speed is compared. packed, prefix and rows must give the same
scores. All run in interleaved rounds; medians are printed as `evaluate_SHAPE_PEER ours peer ratio`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, cast

from support import workload  # first: it makes the packages importable
import numpy as np
import pyarrow as pa
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from corpus.ingest.simulation import simulate_shoppers
from corpus.settings import SimulateSettings
from cprec.encode.prompt import TABLE1
from cprec.encode.title_encoding import UncachedPromptEncoder
from cprec.encode.tokens import TitleEncoder
from cprec.evaluation.candidate_rows import PassKind, Query
from cprec.evaluation.candidate_scoring import encode_query, score_samples
from cprec.evaluation.generation import build_trie
from cprec.evaluation.scoring_check import choose_scoring
from cprec.model import tiny

LISTED = 5
"""Items of a list that is generated."""

TOY = {
    "hidden_size": 128,
    "intermediate_size": 341,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SHAPES: dict[str, tuple[dict[str, int], int, int]] = {
    "toy": (TOY, 32, 5),
    "smollm2": (workload.SMOLLM2_SHAPE, 4, 3),
}
"""Configuration of each shape, users, and rounds."""
BATCH = 16
"""Users of a pass of ours, and of peers that take one prompt per user."""
ROWS = 64
"""Rows of a pass of peers that take a row per candidate."""


def score_by_prefix(model: PreTrainedModel, queries: Sequence[Query]) -> np.ndarray:
    """Scores candidates with a cache of the prompts that is repeated for each candidate."""
    scores = np.empty((len(queries), len(queries[0].answers)))
    order = sorted(range(len(queries)), key=lambda i: len(queries[i].prompt))
    batch = ROWS // scores.shape[1]
    for start in range(0, len(order), batch):
        part = [queries[i] for i in order[start : start + batch]]
        ids = pad([q.prompt for q in part], "left")
        mask = pad([[1] * len(q.prompt) for q in part], "left")
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        first = model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
        times = scores.shape[1]
        cache = first.past_key_values
        cache.batch_repeat_interleave(times)
        answers = [answer for q in part for answer in q.answers]
        ids = pad(answers, "right")
        answer_mask = pad([[1] * len(answer) for answer in answers], "right")
        logits = model(
            ids[:, :-1],
            attention_mask=torch.cat([mask.repeat_interleave(times, 0), answer_mask[:, :-1]], 1),
            position_ids=positions[:, -1:].repeat_interleave(times, 0)
            + answer_mask[:, :-1].cumsum(1),
            past_key_values=cache,
        ).logits
        logits = torch.cat([first.logits.repeat_interleave(times, 0), logits], 1)
        log_p = logits.log_softmax(-1).gather(2, ids[..., None])[..., 0]
        scores[order[start : start + batch]] = (log_p * answer_mask).sum(1).view(-1, times)
    return scores


def score_by_rows(model: PreTrainedModel, queries: Sequence[Query]) -> np.ndarray:
    """Scores candidates in a padded row each."""
    rows = [(q.prompt, answer) for q in queries for answer in q.answers]
    scores = np.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    for start in range(0, len(order), ROWS):
        numbers = order[start : start + ROWS]
        part = [rows[i] for i in numbers]
        ids = pad([prompt + answer for prompt, answer in part], "right")
        first = min(len(prompt) for prompt, _ in part)
        is_answer = pad([[0] * len(p) + [1] * len(answer) for p, answer in part], "right")
        logits = model(ids, use_cache=False, logits_to_keep=ids.shape[1] - first + 1).logits
        log_p = logits[:, :-1].log_softmax(-1).gather(2, ids[:, first:, None])[..., 0]
        scores[numbers] = (log_p * is_answer[:, first:]).sum(1)
    return scores.reshape(len(queries), -1)


def generate_lists(
    model: PreTrainedModel, encoder: UncachedPromptEncoder, samples: Sequence[dict[str, Any]]
) -> list[list[int]]:
    """Generates an answer, removes it, and generates again; returns each user's list."""
    lists: list[list[int]] = [[] for _ in samples]
    for _ in range(LISTED):
        for start in range(0, len(samples), BATCH):
            users = range(start, min(start + BATCH, len(samples)))
            candidates = [
                [item for item in samples[user]["candidates"] if item not in lists[user]]
                for user in users
            ]
            prompts = [
                encoder.encode_prompt(samples[user]["history"], shown, 64)[0]
                for user, shown in zip(users, candidates, strict=True)
            ]
            answers = [[encoder.encode_answer(item) for item in shown] for shown in candidates]
            for user, row, shown, found in zip(
                users, generate(model, prompts, answers), candidates, answers, strict=True
            ):
                lists[user].append(shown[found.index(row)])
    return lists


def generate(
    model: PreTrainedModel, prompts: list[list[int]], answers: list[list[list[int]]]
) -> list[list[int]]:
    """Generates one of its answers for each prompt with transformers' own `generate`."""
    ids = pad(prompts, "left")
    end = answers[0][0][-1]
    tries = [build_trie(row) for row in answers]

    def allowed(row: int, tokens: torch.Tensor) -> list[int]:
        node = tries[row]
        for token in tokens[ids.shape[1] :].tolist():
            node = node.get(token, {})
        return list(node) or [end]

    out = cast(Any, model).generate(
        ids,
        attention_mask=pad([[1] * len(prompt) for prompt in prompts], "left"),
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
        prefix_allowed_tokens_fn=allowed,
    )
    rows = out[:, ids.shape[1] :].tolist()
    return [row[: row.index(end) + 1] for row in rows]


def pad(rows: Sequence[Sequence[int]], side: str) -> torch.Tensor:
    """Pads rows with zeros on a side."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side=side)


def measure(name: str, rounds: int | None) -> None:
    """Measures all contenders on a shape, and prints a line for each peer."""
    shape, users, usual_rounds = SHAPES[name]
    rounds = rounds or usual_rounds
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    titles = list(simulate_shoppers(["Games"], SimulateSettings(users=10), 0).shelves[0].titles)
    tokenizer = tiny.train_tokenizer(titles, 1024, TABLE1)
    encoder = UncachedPromptEncoder(titles, TitleEncoder(tokenizer, 2048, TABLE1))
    config = LlamaConfig(**{"vocab_size": len(tokenizer), "max_position_embeddings": 2048, **shape})
    model = cast(PreTrainedModel, LlamaForCausalLM(config).eval())
    samples = pa.table(
        {
            "history": [rng.integers(0, len(titles), 10).tolist() for _ in range(users)],
            "candidates": [rng.permutation(len(titles))[:20].tolist() for _ in range(users)],
        }
    )
    rows = samples.to_pylist()

    def queries() -> list[Query]:
        return [encode_query(encoder, row["history"], row["candidates"]) for row in rows]

    way = choose_scoring(model, 2048)  # once for all samples, however many
    assert way.kind is PassKind.PACKED, way.notice
    score_samples(model, encoder, samples.slice(0, 2), BATCH, way)  # the first pass is slower
    contenders: dict[str, Callable[[], Any]] = {
        "packed": lambda: score_samples(model, encoder, samples, BATCH, way),
        "prefix": lambda: score_by_prefix(model, queries()),
        "rows": lambda: score_by_rows(model, queries()),
        "generate": lambda: generate_lists(model, encoder, rows),
    }
    users_per_s: dict[str, list[float]] = {contender: [] for contender in contenders}
    results: dict[str, Any] = {}
    for number in range(rounds):
        for contender, evaluate in contenders.items():
            began = time.perf_counter()
            results[contender] = evaluate()
            users_per_s[contender].append(users / (time.perf_counter() - began))
            print(f"{name} {number} {contender}", end="\r", file=sys.stderr)
    for peer in ("prefix", "rows"):
        difference = np.abs(results["packed"] - results[peer]).max()
        assert difference < 1e-3, f"scores of {peer} differ by {difference}"
    tokens = sum(query.num_tokens for query in queries()) / users
    print(f"{name}: {tokens:.0f} tokens a user, {users} users, {rounds} rounds")
    ours = median(users_per_s.pop("packed"))
    for peer, values in users_per_s.items():
        theirs = median(values)
        print(f"evaluate_{name}_{peer} {ours:.2f} {theirs:.2f} {ours / theirs:.1f}")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), metavar="toy|smollm2")
    parser.add_argument("--rounds", type=int, help="rounds, in place of those of the shape")
    options = parser.parse_args()
    for name in options.shapes:
        measure(name, options.rounds)


if __name__ == "__main__":
    main()
