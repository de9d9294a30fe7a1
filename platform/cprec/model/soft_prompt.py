"""A soft prompt: embeddings that are trained, of tokens that stand before every prompt.

Its tokens have ids beyond the vocabulary (`cprec.encode.prompt`). So samples, packed rows, layouts
and passes hold plain token ids, with a soft prompt or without, and each sample of a row has its
own. Only the model's embedding knows the difference. On storage it is PEFT's prompt tuning
(Lester et al., arXiv 2104.08691), whose model gives the same logits to one sample at a time.
"""

import json
from pathlib import Path
from typing import cast

import torch
from peft import PromptTuningConfig, TaskType
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from cluster.errors import RunError
from cprec.encode.prompt import PROMPT_FILE, SOFT_TOKEN_START, parse_template
from cprec.model.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

PEFT_WEIGHT = "prompt_embeddings"
"""Name of the embeddings of a soft prompt in PEFT's file."""


class SoftPromptEmbedding(nn.Module):
    """Word embeddings of a model, and those of the tokens of a soft prompt.

    Attributes:
        words: The word embeddings.
        soft: The soft prompt's embeddings [tokens, H].
    """

    def __init__(self, words: nn.Embedding, soft: torch.Tensor) -> None:
        super().__init__()
        self.words = words
        self.soft = nn.Parameter(soft.to(words.weight.device, words.weight.dtype))

    @property
    def weight(self) -> torch.Tensor:
        """The word embeddings [vocabulary, H]."""
        return self.words.weight

    @property
    def num_embeddings(self) -> int:
        """Word embeddings."""
        return self.words.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """H, the size of an embedding."""
        return self.words.embedding_dim

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Looks up the embeddings [B, T, H] of token ids [B, T]."""
        is_soft = input_ids >= SOFT_TOKEN_START
        words: torch.Tensor = self.words(input_ids.masked_fill(is_soft, 0))
        # Token 0 stands for words, so that the soft prompt has a gradient, if only zero, in every
        # pass and on every worker.
        soft = self.soft[(input_ids - SOFT_TOKEN_START).clamp(min=0)]
        return torch.where(is_soft.unsqueeze(-1), soft, words)


def find_soft_prompt(model: nn.Module) -> SoftPromptEmbedding | None:
    """Returns the embedding of a model with a soft prompt; None if it has none."""
    embedding = cast(PreTrainedModel, model).get_input_embeddings()
    return embedding if isinstance(embedding, SoftPromptEmbedding) else None


def add(model: PreTrainedModel, tokens: int) -> None:
    """Adds a fresh soft prompt, of embeddings of random words, and freezes everything else.

    Words of the vocabulary are a better start than random numbers (Lester et al., Sec. 3.2).

    Args:
        model: The base model; it is changed in place.
        tokens: Tokens of the soft prompt.
    """
    words = cast(nn.Embedding, model.get_input_embeddings())
    drawn = torch.randint(words.num_embeddings, (tokens,)).to(words.weight.device)
    model.requires_grad_(False)
    with torch.no_grad():  # by the layer itself, because some scale what they look up
        soft = words(drawn).clone()
    model.set_input_embeddings(SoftPromptEmbedding(words, soft))


def save(soft: torch.Tensor, directory: Path, base: str, revision: str | None) -> None:
    """Writes a soft prompt as a directory of PEFT's prompt tuning.

    Args:
        soft: The soft prompt's embeddings, whole [tokens, H].
        directory: Where to write.
        base: The base model.
        revision: Revision of the base model.
    """
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=len(soft),
        token_dim=soft.shape[1],
        num_transformer_submodules=1,
        inference_mode=True,
        base_model_name_or_path=base,
        revision=revision,
    )
    config.save_pretrained(str(directory))
    file = directory / ADAPTER_WEIGHTS
    save_file({PEFT_WEIGHT: soft.contiguous()}, file, metadata={"format": "pt"})


def load(model: PreTrainedModel, directory: Path) -> None:
    """Adds a saved soft prompt to a base model, or replaces that of a model.

    Args:
        model: The model; it is changed in place, and what it trains stays.
        directory: A directory of PEFT's prompt tuning.

    Raises:
        RunError: It does not fit the base, or its prompts are said to have no such soft prompt.
    """
    soft = load_file(directory / ADAPTER_WEIGHTS)[PEFT_WEIGHT]
    embedding = find_soft_prompt(model)
    words = (
        cast(nn.Embedding, model.get_input_embeddings()) if embedding is None else embedding.words
    )
    hidden = words.embedding_dim
    if soft.ndim != 2 or soft.shape[1] != hidden:
        raise RunError(
            f"{directory}: this soft prompt, of shape {list(soft.shape)}, does not fit the base "
            f"model, whose embeddings have {hidden} values"
        )
    prompt_file = directory / PROMPT_FILE
    text = prompt_file.read_text() if prompt_file.is_file() else None
    template = parse_template(text, str(prompt_file))
    if template.soft_tokens != len(soft):
        raise RunError(
            f"{directory}: a soft prompt of {len(soft)} tokens, and prompts of the template "
            f"{template.name}, without such a one; if that is what it was trained with, put "
            f'{{"template": "{template.with_soft_tokens(len(soft)).name}"}} there as {PROMPT_FILE}'
        )
    model.set_input_embeddings(SoftPromptEmbedding(words, soft))


def is_soft_prompt(directory: Path) -> bool:
    """Returns whether a PEFT directory holds a soft prompt.

    Raises:
        RunError: It holds another kind of learned prompt, which packed rows do not take.
    """
    config = json.loads((directory / ADAPTER_CONFIG).read_bytes())
    kind = config.get("peft_type")
    if "num_virtual_tokens" in config and kind != "PROMPT_TUNING":
        raise RunError(
            f"{directory}: an adapter of PEFT's kind {kind}, which adds to what every row begins "
            "with, and rows here hold several samples; train one with model.adapter prompt or lora"
        )
    return bool(kind == "PROMPT_TUNING")
