"""Hybrid prompts (LLaRA, arXiv 2312.02445, Sec. 3): each title is followed by one behaviour token, the projected embedding of its item.

A behaviour token is written as a token id beyond the vocabulary: `vocabulary + item number`. So samples, shares and micro-batches hold plain token
ids whether they are hybrid or not, and only the model, which looks the embedding up, knows the difference.

Shapes: B rows, T tokens, H hidden size of the language model, D size of an item embedding, I items of the domain.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cluster.errors import DataError, RecipeError, RunError
from cprec.encode import prompt
from cprec.encode.tokens import EncodedSample, TitleEncoder

BEHAVIOUR_FILE = "behaviour.safetensors"

Item = tuple[str, int]
"""An item as prompts know it: its title and its number among the items with an embedding."""


class HybridModel(nn.Module):
    """A language model that also takes behaviour tokens. Trained: what is trained of the language model, and the projector Linear-GELU-Linear."""

    def __init__(self, model: nn.Module, item_embeddings: torch.Tensor, seed: int) -> None:
        """items: [I, D] embeddings of the items by number, frozen; seed: of the projector's first weights, equal on every worker."""
        super().__init__()
        words = _word_embeddings(model)
        hidden = words.embedding_dim
        self.model = model
        self.vocab_size = words.num_embeddings
        self.register_buffer("items", item_embeddings.float(), persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projector = nn.Sequential(
                nn.Linear(item_embeddings.shape[1], hidden), nn.GELU(), nn.Linear(hidden, hidden)
            )
            # A projected item is as long as the mean word: at the usual start it would be many times that, and drown the title.
            with torch.no_grad():
                scale = (
                    words.weight.float().norm(dim=1).mean()
                    / self.projector(item_embeddings.float()).norm(dim=1).mean()
                )
                last = cast(nn.Linear, self.projector[2])
                last.weight.mul_(scale)
                last.bias.mul_(scale)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model."""
        return self.model.dtype  # type: ignore[return-value]

    @property
    def config(self) -> Any:
        """Of the language model."""
        return self.model.config

    def set_attn_implementation(self, name: str) -> None:
        """Of the language model (cprec.model.attention)."""
        cast(PreTrainedModel, self.model).set_attn_implementation(name)

    def activation_checkpointing_enable(self, arguments: dict[str, Any]) -> None:
        """Of the language model."""
        cast(PreTrainedModel, self.model).activation_checkpointing_enable(arguments)

    def forward(self, input_ids: torch.Tensor, **arguments: Any) -> Any:
        """The language model's output for [B, T] token ids, some of them behaviour tokens."""
        return self.model(inputs_embeds=self.embed(input_ids), **arguments)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[B, T] token ids to [B, T, H]."""
        behaviour = input_ids >= self.vocab_size
        words: torch.Tensor = _word_embeddings(self.model)(input_ids.masked_fill(behaviour, 0))
        # Item 0 stands in where there is no behaviour token: the projector then has a gradient, zero, on every worker in every step.
        numbers = torch.cat([(input_ids[behaviour] - self.vocab_size), input_ids.new_zeros(1)])
        embeddings = self.get_buffer("items")[numbers].to(next(self.projector.parameters()).dtype)
        projected: torch.Tensor = self.projector(embeddings).to(words.dtype)
        return words.masked_scatter(behaviour.unsqueeze(-1), projected[:-1]) + 0 * projected[-1]


def save(model: HybridModel, weights: dict[str, torch.Tensor], directory: Path) -> None:
    """Write projector and embeddings below a checkpoint folder. weights: trained parameters by name, whole."""
    directory.mkdir(parents=True, exist_ok=True)
    projector = {
        name.removeprefix("projector."): t.contiguous()
        for name, t in weights.items()
        if name.startswith("projector.")
    }
    save_file(
        {**projector, "items": model.get_buffer("items").float().cpu().contiguous()},
        directory / BEHAVIOUR_FILE,
    )


def load(model: PreTrainedModel, directory: Path) -> HybridModel:
    """A language model with the projector and embeddings that `save` wrote, in evaluation mode. Raises RunError when they are of another base."""
    tensors = load_file(directory / BEHAVIOUR_FILE)
    hybrid = HybridModel(model, tensors.pop("items"), 0)
    try:
        hybrid.projector.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(
            f"{directory / BEHAVIOUR_FILE}: this projector does not fit the base model: {error}"
        ) from None
    hybrid.projector.to(model.device, model.dtype)
    return hybrid.eval()


class HybridPromptEncoder:
    """Items to token ids, never longer than max_tokens: titles as in the text-only prompt, each followed by its behaviour token."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_tokens: int, vocab_size: int
    ) -> None:
        """vocabulary: word embeddings of the model; behaviour tokens are counted from there. Raises RecipeError for a tokenizer without offsets."""
        if not tokenizer.is_fast:
            raise RecipeError(
                "model.base: its tokenizer does not tell where a token comes from in the text (no fast tokenizer); use finetune.hybrid false"
            )
        self._tokenizer, self._max_tokens, self._vocab_size = tokenizer, max_tokens, vocab_size
        self._title_encoder = TitleEncoder(tokenizer, max_tokens)
        self._bos_ids = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]

    def encode_prompt(
        self, history: Sequence[Item], candidates: Sequence[Item], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Token ids of the prompt, and how many of the oldest items were dropped so that `room` more tokens fit.

        Raises DataError when the candidates alone do not fit: they are never cut.
        """
        for dropped in range(len(history) + 1):
            ids = self._bos_ids + self._interleave(history[dropped:], candidates)
            if len(ids) + reserved_tokens <= self._max_tokens:
                return ids, dropped
        raise DataError(
            f"a hybrid prompt of {len(candidates)} candidates and no history takes {len(ids)} tokens and its answer {reserved_tokens}; "
            f"model.max_tokens is {self._max_tokens}: raise it or shorten the titles"
        )

    def encode_answer(self, item: Item) -> list[int]:
        """Token ids of an answer: the title alone, and the end token."""
        return self._title_encoder.encode_answer(item[0])

    def encode_sample(
        self, history: Sequence[Item], candidates: Sequence[Item], target_position: int
    ) -> EncodedSample:
        """Tokens of a training sample. target: position of the true item in candidates."""
        answer = self.encode_answer(candidates[target_position])
        ids, dropped = self.encode_prompt(history, candidates, reserved_tokens=len(answer))
        return EncodedSample(
            np.array(ids + answer, dtype=np.int32), answer_start=len(ids), dropped_titles=dropped
        )

    def _interleave(self, history: Sequence[Item], candidates: Sequence[Item]) -> list[int]:
        """The prompt's tokens, each behaviour token behind the token that holds the last character of its title."""
        text = prompt.render_prompt(
            [title for title, _ in history], [title for title, _ in candidates]
        )
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends, ids = [stop for _, stop in found["offset_mapping"]], []
        titles = _iter_title_ends(history, candidates)
        upcoming = next(titles, None)
        for token, end in zip(found["input_ids"], ends, strict=True):
            ids.append(int(token))
            while upcoming is not None and end >= upcoming[0]:
                ids.append(self._vocab_size + upcoming[1])
                upcoming = next(titles, None)
        return ids


class TextPromptEncoder:
    """The text-only prompt, for items instead of titles."""

    def __init__(self, title_encoder: TitleEncoder) -> None:
        self._title_encoder = title_encoder

    def encode_prompt(
        self, history: Sequence[Item], candidates: Sequence[Item], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Token ids of the prompt, and how many of the oldest titles were dropped."""
        return self._title_encoder.encode_prompt(
            [title for title, _ in history], [title for title, _ in candidates], reserved_tokens
        )

    def encode_answer(self, item: Item) -> list[int]:
        """Token ids of an answer, its end token included."""
        return self._title_encoder.encode_answer(item[0])

    def encode_sample(
        self, history: Sequence[Item], candidates: Sequence[Item], target_position: int
    ) -> EncodedSample:
        """Tokens of a training sample."""
        return self._title_encoder.encode_sample(
            [title for title, _ in history], [title for title, _ in candidates], target_position
        )


class IndexedPromptEncoder:
    """The same by item index, which is how samples name items."""

    def __init__(
        self, encoder: TextPromptEncoder | HybridPromptEncoder, items: Mapping[int, Item]
    ) -> None:
        """items: by item index."""
        self._encoder, self._items = encoder, items

    def encode_prompt(
        self, history: Sequence[int], candidates: Sequence[int], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Token ids of the prompt, and how many of the oldest items were dropped."""
        return self._encoder.encode_prompt(
            self._look_up(history), self._look_up(candidates), reserved_tokens
        )

    def encode_answer(self, item: int) -> list[int]:
        """Token ids of an answer, its end token included."""
        return self._encoder.encode_answer(self._items[item])

    def encode_sample(
        self, history: Sequence[int], candidates: Sequence[int], target_position: int
    ) -> EncodedSample:
        """Tokens of a training sample. target: position of the true item in candidates."""
        return self._encoder.encode_sample(
            self._look_up(history), self._look_up(candidates), target_position
        )

    def _look_up(self, indices: Sequence[int]) -> list[Item]:
        return [self._items[i] for i in indices]


def _word_embeddings(model: nn.Module) -> nn.Embedding:
    """The word embeddings of a language model, with or without an adapter around it."""
    return cast(nn.Embedding, cast(PreTrainedModel, model).get_input_embeddings())


def _iter_title_ends(
    history: Sequence[Item], candidates: Sequence[Item]
) -> Iterator[tuple[int, int]]:
    """(characters of the prompt up to a title's end, number of its item), in the prompt's order."""
    at = len(prompt.OPENING)
    for items, after in ((history, prompt.MIDDLE), (candidates, prompt.CLOSING)):
        for place, (title, number) in enumerate(items):
            at += len(prompt.SEPARATOR) * (place > 0) + len(title)
            yield at, number
        at += len(after)
