"""Row encoder: encodes corpus rows with titles that Ray's object store holds once per node."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import ray

from cluster.errors import DataError, RecipeError
from corpus.store.tables import Corpus
from cprec.encode import text_windows
from cprec.encode.prompt import PromptTemplate
from cprec.encode.text_tasks import ObjectiveEncoder, draw_objectives
from cprec.encode.text_tokenizer import Tokenizer
from cprec.encode.text_windows import PromptRowEncoder, without_windows
from cprec.encode.title_encoding import UncachedPromptEncoder, build_title_encoding
from cprec.encode.title_tokens import CachedPromptEncoder, TitleTokens
from cprec.encode.tokens import EncodedSample, TitleEncoder
from cprec.schedule.objectives import NEXT_ITEM_ONLY, Objective, Objectives
from cprec.stream.sharing_groups import NO_SHARING, TokenSharing
from cprec.stream.token_sharing import SharedRow, group_samples

PROBED_TITLES = 2000
"""Titles with which `find_fallback_reason` tries a tokenizer."""
SHARING_NEEDS = "samples share tokens only where prompts can be cut at titles"
"""What sharing asks of a tokenizer and of titles, for messages."""


@dataclass(frozen=True)
class RowEncoder:
    """Encoder of the rows of one corpus version, small enough to be sent with every Ray task.

    Attributes:
        base: Base model, whose tokenizer is used: a hub id, an absolute directory or a URI.
        revision: Revision of a base model on the hub; None for its default.
        max_tokens: Maximum length of a sample, in tokens.
        template: Template of the prompts.
        titles_ref: Reference to the titles in the object store: title tokens, or the texts if the
            tokenizer has to be called on whole prompts.
        sharing: What training samples share; it needs title tokens.
        objectives: What training samples teach.
        fallback_reason: Why titles are stored as texts; empty if they are not.
    """

    base: str
    revision: str | None
    max_tokens: int
    template: PromptTemplate
    titles_ref: "ray.ObjectRef[TitleTokens | Sequence[str]]"
    sharing: TokenSharing = NO_SHARING
    objectives: Objectives = NEXT_ITEM_ONLY
    fallback_reason: str = ""

    @classmethod
    def from_corpus(
        cls,
        corpus: Corpus,
        base: str,
        revision: str | None,
        max_tokens: int,
        template: PromptTemplate,
        sharing: TokenSharing = NO_SHARING,
        objectives: Objectives = NEXT_ITEM_ONLY,
    ) -> "RowEncoder":
        """Encodes the titles of a corpus version and puts them into Ray's object store.

        They are stored as token ids if prompts that are concatenated from these equal the
        tokenizer's own, else as texts.

        Args:
            corpus: The corpus version.
            base: Base model: a hub id, an absolute directory or a URI.
            revision: Revision of a base model on the hub; None for its default.
            max_tokens: Maximum length of a sample, in tokens.
            template: Template of the prompts.
            sharing: Which tokens the training samples of a row share.
            objectives: What training samples teach.

        Raises:
            RecipeError: The tokenizer has no end token, or merges across spaces.
            DataError: Samples are to share tokens, and the titles do not allow it.
        """
        no_titles = cls(base, revision, max_tokens, template, ray.put(()), sharing, objectives)
        return no_titles.with_titles_of(corpus)

    def with_titles_of(self, corpus: Corpus) -> "RowEncoder":
        """Returns this encoder with the titles of a version of its corpus, where it lacks any.

        An item never changes its index or title, so only added titles are tokenised, if those
        before are token ids. Where there are none, the tokenizer is not even loaded.

        Raises:
            RecipeError: The tokenizer has no end token, or merges across spaces.
            DataError: Samples are to share tokens, and the titles do not allow it.
        """
        titles = corpus.read_titles()
        earlier = ray.get(self.titles_ref)
        token_ids, num_known = (
            (earlier, earlier.num_items)
            if isinstance(earlier, TitleTokens)
            else (None, len(earlier))
        )
        if num_known >= len(titles):
            return self
        encoding = build_title_encoding(titles, self._load_tokenizer(), self.template, token_ids)
        reason = encoding.fallback_reason
        if reason and self.sharing:
            raise DataError(
                f"{corpus.uri}, version {corpus.version}: {SHARING_NEEDS}, but {reason}; train it "
                "without train.targets_per_pass and train.shared_candidates"
            )
        return replace(
            self,
            titles_ref=ray.put(encoding.title_tokens or encoding.titles),
            fallback_reason=reason,
        )

    def load_prompt_encoder(self) -> CachedPromptEncoder | UncachedPromptEncoder:
        """Returns the encoder of prompts for this process.

        Title tokens are read in place from the object store, without tokenizer and transformers.
        """
        titles = ray.get(self.titles_ref)
        if isinstance(titles, TitleTokens):
            return CachedPromptEncoder(titles, self.max_tokens)
        title_encoder = TitleEncoder(self._load_tokenizer(), self.max_tokens, self.template)
        return UncachedPromptEncoder(titles, title_encoder)

    def encode_rows(self, rows: pa.Table) -> list[EncodedSample]:
        """Encodes corpus rows, in their order, both prompts and windows of text.

        Raises:
            DataError: A row does not fit into `max_tokens`, even with the shortest history.
        """
        prompts = self.load_prompt_encoder()
        prompt_encoder: PromptRowEncoder = prompts
        if self.objectives:
            prompt_encoder = ObjectiveEncoder(prompts, self.objectives, self.max_tokens)
        if "text" not in rows.column_names:
            return prompt_encoder.encode_samples(rows)
        return text_windows.encode_samples(
            rows, prompt_encoder, self._load_tokenizer(), self.max_tokens
        )

    def count_objectives(self, rows: pa.Table) -> dict[str, int]:
        """Returns how many corpus rows have each objective; windows of text have none.

        Empty where the run has no other objective than the next item.
        """
        if not self.objectives:
            return {}
        drawn = draw_objectives(without_windows(rows), self.objectives)
        return {objective: drawn.count(objective) for objective in Objective if objective in drawn}

    def group_rows(
        self, rows: pa.Table, samples: Sequence[EncodedSample]
    ) -> list[SharedRow] | None:
        """Lays out a global batch in groups of samples that share tokens.

        Args:
            rows: Corpus rows of the global batch.
            samples: The same rows as `encode_rows` returns them.

        Returns:
            The groups; None if samples share nothing.
        """
        titles = ray.get(self.titles_ref) if self.sharing else None
        if not isinstance(titles, TitleTokens):
            return None
        return group_samples(rows, samples, titles, self.sharing, self.max_tokens)

    def _load_tokenizer(self) -> Tokenizer:
        # Imported lazily: it imports transformers, which most read tasks do not need.
        from cprec.model.backbone import load_tokenizer

        return load_tokenizer(self.base, self.revision)


def require_tokens_can_be_shared(inexact_keys: str, fallback_reason: str | None) -> None:
    """Checks that samples can share tokens with the tokenizer of the base, if they are to.

    Args:
        inexact_keys: Keys of the recipe by which samples share tokens; empty if none does.
        fallback_reason: Why prompts have to be tokenised one by one; None if they need not.

    Raises:
        RecipeError: Samples are to share tokens, and the tokenizer does not allow it.
    """
    if fallback_reason and inexact_keys:
        raise RecipeError(f"{inexact_keys}: {SHARING_NEEDS}, but {fallback_reason}")


def describe_fallback(reason: str) -> str:
    """Returns what it means that titles are stored as texts, for people."""
    return f"prompts are tokenised one by one, which is slower: {reason}"


def find_fallback_reason(
    corpus: Corpus, base: str, revision: str | None, template: PromptTemplate
) -> str | None:
    """Returns why prompts cannot be concatenated from title tokens, tried on some titles.

    Args:
        corpus: The corpus version.
        base: Base model: a hub id, an absolute directory or a URI.
        revision: Revision of a base model on the hub; None for its default.
        template: Template of the prompts.

    Returns:
        None where title tokens can be used, as they can for most tokenizers. A title that was not
        tried may still forbid it: `RowEncoder.with_titles_of` looks at all of them.

    Raises:
        RecipeError: The tokenizer has no end token, or merges across spaces.
    """
    from cprec.model.backbone import load_tokenizer

    titles = corpus.read_titles()
    probed = titles[:: max(len(titles) // PROBED_TITLES, 1)]
    encoding = build_title_encoding(probed, load_tokenizer(base, revision), template)
    return encoding.fallback_reason or None
