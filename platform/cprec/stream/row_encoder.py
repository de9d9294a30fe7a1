"""Row encoder: turns corpus rows into tokens, with titles held in Ray's object store."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray

from corpus.store.tables import Corpus
from cprec.encode import text_windows
from cprec.encode.title_tokens import (
    CachedPromptEncoder,
    TitleTokens,
    UncachedPromptEncoder,
    build_title_encoding,
)
from cprec.encode.tokens import EncodedSample, TitleEncoder, Tokenizer
from cprec.stream.token_sharing import NO_SHARING, SharedRow, TokenSharing, group_samples


@dataclass(frozen=True)
class RowEncoder:
    """What turns rows into tokens: the longest sample, and in the object store title tokens, or the titles themselves for the fall-back, whose
    tokenizer is that of base and revision. sharing: what samples of training share; nothing in the fall-back."""

    base: str
    revision: str | None
    max_tokens: int
    titles_ref: "ray.ObjectRef[TitleTokens | Sequence[str]]"
    sharing: TokenSharing = NO_SHARING

    @classmethod
    def from_corpus(
        cls,
        corpus: Corpus,
        base: str,
        revision: str | None,
        max_tokens: int,
        earlier: "RowEncoder | None" = None,
        sharing: TokenSharing = NO_SHARING,
    ) -> "RowEncoder":
        """The words of a corpus version, put into the object store once. before: of an earlier version, whose items need not be tokenised again."""
        from cprec.model.backbone import load_tokenizer

        known = None if earlier is None else ray.get(earlier.titles_ref)
        words = build_title_encoding(
            corpus.read_titles(),
            load_tokenizer(base, revision),
            known if isinstance(known, TitleTokens) else None,
        )
        return cls(
            base,
            revision,
            max_tokens,
            ray.put(words.titles if words.title_tokens is None else words.title_tokens),
            sharing,
        )

    def load_prompt_encoder(self) -> CachedPromptEncoder | UncachedPromptEncoder:
        """What a task encodes with. Title tokens need neither tokenizer nor transformers, and are read in place."""
        words = ray.get(self.titles_ref)
        if isinstance(words, TitleTokens):
            return CachedPromptEncoder(words, self.max_tokens)
        return UncachedPromptEncoder(words, TitleEncoder(self._load_tokenizer(), self.max_tokens))

    def encode_rows(self, rows: pa.Table) -> list[EncodedSample]:
        """Tokens of corpus rows, of prompts and windows of text alike."""
        return text_windows.encode_samples(
            rows, self.load_prompt_encoder(), self._load_tokenizer, self.max_tokens
        )

    def _load_tokenizer(self) -> Tokenizer:
        from cprec.model.backbone import load_tokenizer

        return load_tokenizer(self.base, self.revision)

    def group_rows(
        self, rows: pa.Table, samples: Sequence[EncodedSample]
    ) -> list[SharedRow] | None:
        """The samples of a global batch in groups that share tokens; None where samples share nothing. tokens: of the rows, from `encoder`."""
        words = ray.get(self.titles_ref) if self.sharing else None
        return (
            group_samples(rows, samples, words, self.sharing, self.max_tokens)
            if isinstance(words, TitleTokens)
            else None
        )
