"""Lets a language model write rankings. Pure torch; no Ray, no I/O."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from cluster.progress import Advance, unseen
from cprec.encode.text_tokenizer import text_tokenizer
from cprec.encode.tokens import fit_prompt
from cprec.evaluation.answer_matching import Answer, match_exact, match_llara
from cprec.evaluation.generation import greedy_decode
from cprec.evaluation.listwise.instruction import CUE, LISTED, read_ranking, render_instruction

TOKENS_AROUND_TITLE = 8
"""Tokens of a line of the answer beside those of its title: number, dot, line break."""
_CONTENT = "\ue000"
"""Stands for what the user says while a chat template is rendered; no template contains it."""


class InstructionEncoder:
    """Encodes instructions as the base was tuned to read them: in its chat template, if it has one.

    What stands in titles is text, whatever it says (`cprec.encode.text_tokenizer`).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        """Tokenises what stands around an instruction.

        Args:
            tokenizer: Tokenizer of the base.
            max_tokens: Tokens of an instruction and its answer, at most.
        """
        self._text = text_tokenizer(tokenizer)
        self._max_tokens = max_tokens
        self.begins_answer = tokenizer.chat_template is None
        if self.begins_answer:
            self._head, self._tail = self._text.prefix_ids, self._text.encode(f"\n\n{CUE}")
            return
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": _CONTENT}], tokenize=False, add_generation_prompt=True
        )
        self._head, self._tail = (
            list(tokenizer(part, add_special_tokens=False)["input_ids"])
            for part in str(rendered).split(_CONTENT)
        )

    def encode(self, history: Sequence[str], candidates: Sequence[str], room: int) -> list[int]:
        """Encodes an instruction, dropping the oldest titles of the history until it fits.

        Args:
            history: Titles, oldest first.
            candidates: Titles to choose from.
            room: Tokens to leave free for the answer.

        Raises:
            DataError: It does not fit even without a history.
        """
        return fit_prompt(
            lambda kept: [
                *self._head,
                *self._text.encode(render_instruction(kept, candidates)),
                *self._tail,
            ],
            history,
            room,
            self._max_tokens,
            f"an instruction with {len(candidates)} candidates",
        )[0]

    def count_tokens(self, titles: Sequence[str]) -> list[int]:
        """Returns the number of tokens of each title."""
        return [len(ids) for ids in self._text.encode_all(titles)]


def generate_rankings(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    samples: pa.Table,
    titles: Sequence[str],
    batch_size: int,
    max_tokens: int,
    cached: bool,
    advance: Advance = unseen,
) -> list[list[Answer]]:
    """Lets a model write a ranking of each sample's candidates.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        samples: Samples with the columns `history` and `candidates` (item indices).
        titles: Titles by item index.
        batch_size: Samples in one forward pass.
        max_tokens: Tokens of an instruction and its answer, at most.
        cached: Whether to keep a cache (`cprec.evaluation.decoding`).
        advance: Is called with how many more samples are ranked.

    Returns:
        Each sample's answers, one for each place of its ranking, as far as they name candidates
        that were not named before. A sample whose answer is no list has that one answer, which
        names nothing.
    """
    encoder = InstructionEncoder(tokenizer, max_tokens)
    histories, candidates = (
        [[titles[item] for item in items] for items in samples[name].to_pylist()]
        for name in ("history", "candidates")
    )
    items = samples["candidates"].to_pylist()
    rankings: list[list[Answer]] = []
    for start in range(0, len(samples), batch_size):
        rows = range(start, min(start + batch_size, len(samples)))
        room = max(_room(encoder, candidates[row]) for row in rows)
        prompts = [encoder.encode(histories[row], candidates[row], room) for row in rows]
        eos_token_id = int(tokenizer.eos_token_id)
        for row, ids in zip(
            rows, greedy_decode(model, prompts, eos_token_id, room, cached=cached), strict=True
        ):
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            written = f"1.{text}" if encoder.begins_answer else text
            decoded = [_read_back(tokenizer, title) for title in candidates[row]]
            rankings.append(rank_by_text(written, items[row], candidates[row], decoded))
        advance(len(rows))
    return rankings


def rank_by_text(
    text: str, items: Sequence[int], titles: Sequence[str], decoded: Sequence[str] = ()
) -> list[Answer]:
    """Reads the ranking that an answer writes; see `generate_rankings`.

    Args:
        text: The answer.
        items: Item indices of the candidates.
        titles: Their titles.
        decoded: The same titles, encoded and decoded again.
    """
    answers: list[Answer] = []
    for title in read_ranking(text):
        exact, llara = match_exact(title, titles, decoded), match_llara(title, titles, decoded)
        item = None if exact is None else items[exact]
        if answers and (item is None or item in [answer.exact for answer in answers]):
            break
        answers.append(Answer(title, item, None if llara is None else items[llara]))
        if item is None:
            break
    return answers or [Answer(text.strip(), None, None)]


def _room(encoder: InstructionEncoder, titles: Sequence[str]) -> int:
    """Returns how many tokens a ranking of these titles has, at most."""
    longest = sorted(encoder.count_tokens(titles))[-LISTED:]
    return sum(longest) + LISTED * TOKENS_AROUND_TITLE


def _read_back(tokenizer: PreTrainedTokenizerBase, title: str) -> str:
    """Returns a title as the tokenizer writes it."""
    ids = text_tokenizer(tokenizer).encode(title)
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
