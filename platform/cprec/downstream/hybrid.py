"""Hybrid prompts: each title is followed by one behaviour token (LLaRA, arXiv 2312.02445, Sec. 3).

The embedding of a behaviour token is the projected embedding of its item. The token is written as a
token id beyond the vocabulary: `vocab_size + item number`. So samples, worker batches and
micro-batches hold plain token ids whether they are hybrid or not. Only the model knows the
difference, because it looks the embedding up.

Shapes: B rows, T tokens, H hidden size of the language model, D size of an item embedding, I items
of the domain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cluster.errors import RunError
from cprec.downstream.stored_model import BEHAVIOUR_FILE
from cprec.encode.prompt import SOFT_TOKEN_START, PromptTemplate
from cprec.encode.text_tokenizer import text_tokenizer
from cprec.encode.tokens import EncodedSample, SampleEncoder, TitleEncoder, fit_prompt

Item = tuple[str, int]
"""An item in a prompt: its title, and its number among the items that have an embedding."""


class HybridModel(nn.Module):
    """A language model that also takes behaviour tokens.

    Trained are the trainable part of the language model, and the projector, which is
    Linear-GELU-Linear.
    """

    def __init__(self, model: nn.Module, item_embeddings: torch.Tensor, seed: int) -> None:
        """Wraps a language model and initialises the projector.

        Args:
            model: The language model, with or without an adapter.
            item_embeddings: Embeddings of the items by number [I, D]; they stay frozen.
            seed: Seed of the projector's first weights, so that they are equal on every worker.
        """
        super().__init__()
        word_embeddings = _word_embeddings(model)
        hidden_size = word_embeddings.embedding_dim
        self.model = model
        self.vocab_size = word_embeddings.num_embeddings
        self.register_buffer("items", item_embeddings.float(), persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projector = nn.Sequential(
                nn.Linear(item_embeddings.shape[1], hidden_size),
                nn.GELU(),
                nn.Linear(hidden_size, hidden_size),
            )
            # Projected items start as long as the mean word embedding. By default they would be
            # many times longer and drown the titles.
            with torch.no_grad():
                scale = (
                    word_embeddings.weight.float().norm(dim=1).mean()
                    / self.projector(item_embeddings.float()).norm(dim=1).mean()
                )
                last_layer = cast(nn.Linear, self.projector[2])
                last_layer.weight.mul_(scale)
                last_layer.bias.mul_(scale)

    @property
    def device(self) -> torch.device:
        """Device of the language model."""
        return self.model.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the language model."""
        return self.model.dtype  # type: ignore[return-value]

    @property
    def config(self) -> Any:
        """Configuration of the language model."""
        return self.model.config

    def set_attn_implementation(self, name: str) -> None:
        """Sets the language model's attention (cprec.model.kernels.attention)."""
        cast(PreTrainedModel, self.model).set_attn_implementation(name)

    def activation_checkpointing_enable(self, arguments: dict[str, Any]) -> None:
        """Makes the language model recompute activations in the backward pass."""
        cast(PreTrainedModel, self.model).activation_checkpointing_enable(arguments)

    def forward(self, input_ids: torch.Tensor, **arguments: Any) -> Any:
        """Runs the language model on token ids, some of which may be behaviour tokens.

        Args:
            input_ids: Token ids [B, T].
            arguments: Further arguments of the language model's forward pass.

        Returns:
            The language model's output.
        """
        return self.model(inputs_embeds=self.embed(input_ids), **arguments)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Looks up the embeddings [B, T, H] of token ids [B, T]."""
        is_behaviour = (input_ids >= self.vocab_size) & (input_ids < SOFT_TOKEN_START)
        words: torch.Tensor = _word_embeddings(self.model)(input_ids.masked_fill(is_behaviour, 0))
        # Item 0 is added and multiplied by 0 below. So the projector has a gradient, if only zero,
        # on every worker in every step, with or without behaviour tokens.
        numbers = torch.cat([(input_ids[is_behaviour] - self.vocab_size), input_ids.new_zeros(1)])
        embeddings = self.get_buffer("items")[numbers].to(next(self.projector.parameters()).dtype)
        projected: torch.Tensor = self.projector(embeddings).to(words.dtype)
        return words.masked_scatter(is_behaviour.unsqueeze(-1), projected[:-1]) + 0 * projected[-1]


def save(model: HybridModel, weights: dict[str, torch.Tensor], directory: Path) -> None:
    """Writes the projector and the item embeddings of a hybrid model.

    Args:
        model: The model.
        weights: Trained parameters by name, whole (gathered from all workers).
        directory: Folder of a checkpoint to write to; created if it is missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    projector = {
        name.removeprefix("projector."): tensor.contiguous()
        for name, tensor in weights.items()
        if name.startswith("projector.")
    }
    save_file(
        {**projector, "items": model.get_buffer("items").float().cpu().contiguous()},
        directory / BEHAVIOUR_FILE,
    )


def load(model: PreTrainedModel, directory: Path) -> HybridModel:
    """Wraps a language model with the projector and item embeddings that `save` wrote.

    Args:
        model: The language model.
        directory: Folder that `save` wrote to.

    Returns:
        The hybrid model, in evaluation mode.

    Raises:
        RunError: The projector is of another base.
    """
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


class HybridPromptEncoder(SampleEncoder[Item]):
    """Encodes items as hybrid prompts: the text-only prompt with behaviour tokens woven in."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        vocab_size: int,
        template: PromptTemplate,
    ) -> None:
        """Checks the tokenizer.

        Args:
            tokenizer: Tokenizer of the language model.
            max_tokens: Tokens of a prompt and its answer, at most.
            vocab_size: Word embeddings of the model; behaviour tokens are numbered from there.
            template: Template of the prompts.

        Raises:
            RecipeError: The tokenizer does not tell where a token comes from in a text.
        """
        self._text_tokenizer = text_tokenizer(tokenizer)
        self._text_tokenizer.require_fast()
        self._max_tokens = max_tokens
        self._vocab_size = vocab_size
        self._template = template
        self._title_encoder = TitleEncoder(tokenizer, max_tokens, template)

    def encode_prompt(
        self, history: Sequence[Item], candidates: Sequence[Item], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Encodes a prompt, dropping the oldest items of the history until it fits."""
        return fit_prompt(
            lambda items: self._title_encoder.prefix_ids + self._interleave(items, candidates),
            history,
            reserved_tokens,
            self._max_tokens,
            f"a hybrid prompt of {len(candidates)} candidates",
        )

    def encode_answer(self, item: Item) -> list[int]:
        """Encodes an answer: the title, without a behaviour token, and the end token."""
        return self._title_encoder.encode_answer(item[0])

    def _interleave(self, history: Sequence[Item], candidates: Sequence[Item]) -> list[int]:
        """Returns the prompt's tokens, with a behaviour token right behind each title."""
        lists = [title for title, _ in history], [title for title, _ in candidates]
        first, *others = self._text_tokenizer.encode_parts(
            self._template.render(*lists), self._template.title_ends(*lists)
        )
        ids = first
        for (_, number), part in zip([*history, *candidates], others, strict=True):
            ids += [self._vocab_size + number, *part]
        return ids


class TextPromptEncoder(SampleEncoder[Item]):
    """Encodes items as text-only prompts, through their titles."""

    def __init__(self, title_encoder: TitleEncoder) -> None:
        self._title_encoder = title_encoder

    def encode_prompt(
        self, history: Sequence[Item], candidates: Sequence[Item], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Encodes a prompt, dropping the oldest items of the history until it fits."""
        return self._title_encoder.encode_prompt(
            [title for title, _ in history], [title for title, _ in candidates], reserved_tokens
        )

    def encode_answer(self, item: Item) -> list[int]:
        """Encodes an answer; returns its token ids, the end token included."""
        return self._title_encoder.encode_answer(item[0])


class IndexedPromptEncoder:
    """Encodes items given by catalogue index, as samples hold them, with another encoder."""

    def __init__(self, encoder: SampleEncoder[Item], items: Mapping[int, Item]) -> None:
        """Stores the encoder.

        Args:
            encoder: Encoder of prompts.
            items: Items by catalogue index.
        """
        self._encoder = encoder
        self._items = items

    def encode_prompt(
        self, history: Sequence[int], candidates: Sequence[int], reserved_tokens: int
    ) -> tuple[list[int], int]:
        """Encodes a prompt, and drops the oldest items of the history if it does not fit.

        Args:
            history: Catalogue indices of the history, oldest first.
            candidates: Catalogue indices of the candidates.
            reserved_tokens: Tokens that the prompt leaves free for an answer.

        Returns:
            The token ids, and how many of the oldest items were dropped.

        Raises:
            DataError: The candidates alone do not fit; they are never dropped.
        """
        return self._encoder.encode_prompt(
            self._look_up(history), self._look_up(candidates), reserved_tokens
        )

    def encode_answer(self, item: int) -> list[int]:
        """Encodes an answer; returns its token ids, the end token included."""
        return self._encoder.encode_answer(self._items[item])

    def encode_sample(
        self, history: Sequence[int], candidates: Sequence[int], target_position: int
    ) -> EncodedSample:
        """Encodes a training sample.

        Args:
            history: Catalogue indices of the history, oldest first.
            candidates: Catalogue indices of the candidates.
            target_position: Position of the true item among the candidates.
        """
        return self._encoder.encode_sample(
            self._look_up(history), self._look_up(candidates), target_position
        )

    def _look_up(self, indices: Sequence[int]) -> list[Item]:
        """Returns the items at catalogue indices."""
        return [self._items[i] for i in indices]


def _word_embeddings(model: nn.Module) -> nn.Embedding:
    """Returns the word embeddings of a language model, with or without an adapter around it."""
    return cast(nn.Embedding, cast(PreTrainedModel, model).get_input_embeddings())


@dataclass(frozen=True)
class PromptEncoders:
    """The encoders that turn the samples of a fine-tuning into tokens.

    Attributes:
        text: Encoder of text-only prompts.
        hybrid: Encoder of hybrid prompts; None for the text-only variant.
    """

    text: IndexedPromptEncoder
    hybrid: IndexedPromptEncoder | None

    @property
    def for_evaluation(self) -> IndexedPromptEncoder:
        """Encoder of evaluation, which is always hybrid for a hybrid model."""
        return self.hybrid or self.text


def build_encoders(
    tokenizer: Any,
    max_tokens: int,
    model: torch.nn.Module,
    items: Mapping[int, Item],
    template: PromptTemplate,
) -> PromptEncoders:
    """Builds the prompt encoders that fit a model.

    Args:
        tokenizer: Tokenizer of the model.
        max_tokens: Tokens of a prompt and its answer, at most.
        model: The model; only a `HybridModel` gets an encoder of hybrid prompts.
        items: Items by catalogue index.
        template: Template of the prompts.
    """
    text_encoder = TextPromptEncoder(TitleEncoder(tokenizer, max_tokens, template))
    hybrid_encoder = (
        IndexedPromptEncoder(
            HybridPromptEncoder(tokenizer, max_tokens, model.vocab_size, template), items
        )
        if isinstance(model, HybridModel)
        else None
    )
    return PromptEncoders(IndexedPromptEncoder(text_encoder, items), hybrid_encoder)
