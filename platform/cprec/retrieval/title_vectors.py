"""Items as vectors of their titles, by a language model; a history as a mean of such vectors.

An item's vector is the mean of the model's last hidden states over the tokens of its title. A model
that knows no item finds new ones by it, as soon as they have a title.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cprec.encode.text_tokenizer import text_tokenizer
from cprec.retrieval.candidates import NO_ITEM, Histories, Items
from cprec.retrieval.vector_index import VectorIndex, Vectors

MAX_TITLE_TOKENS = 256
"""Tokens of a title that its vector is the mean of, at most."""
TITLES_PER_PASS = 64
"""Titles of one forward pass."""
WHITENING_RIDGE = 0.1
"""Fraction of the mean variance that whitening adds to the variance of each direction."""
VECTOR_FORM = "mean of last hidden states over the title's first 256 tokens"
"""How a title becomes a vector; stored vectors of another form are not used."""

Embed = Callable[[Sequence[str]], Vectors]
"""Turns titles [n] into vectors [n, H]."""


@torch.inference_mode()
def embed_titles(
    model: Any, tokenizer: Any, titles: Sequence[str], batch_size: int = TITLES_PER_PASS
) -> Vectors:
    """Embeds titles with a language model.

    Args:
        model: The model, in evaluation mode, on the device where it is to compute.
        tokenizer: Its tokenizer.
        titles: The titles, one at least, and none of them empty.
        batch_size: Titles of one forward pass.

    Returns:
        Vectors [n, H].
    """
    text = text_tokenizer(tokenizer)
    ids = [
        [*text.prefix_ids, *title_ids[:MAX_TITLE_TOKENS]] for title_ids in text.encode_all(titles)
    ]
    # Titles of similar length share a pass, so that rows need less padding.
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    vectors: dict[int, torch.Tensor] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        # Padding stands behind the title, where no token of a causal model sees it.
        lengths = torch.tensor([len(ids[i]) for i in rows], device=model.device)
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(ids[i]) for i in rows], batch_first=True
        ).to(model.device)
        places = torch.arange(padded.shape[1], device=model.device)
        is_text = places < lengths[:, None]
        is_title = is_text & (places >= len(text.prefix_ids))
        hidden = model(
            input_ids=padded,
            attention_mask=is_text.long(),
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        ).hidden_states[-1]
        sums = (hidden.float() * is_title[..., None]).sum(dim=1)
        vectors.update(
            zip(rows, (sums / is_title.sum(dim=1, keepdim=True).clamp(min=1)).cpu(), strict=True)
        )
    return np.asarray(torch.stack([vectors[i] for i in range(len(ids))]).numpy())


@dataclass(frozen=True)
class TitleSource:
    """Finds items whose titles are like those of the history.

    Attributes:
        index: The items that can be found, by their vectors, whitened and of length 1.
        known_items: Items that a history may hold [m], ascending: the catalogue, and others.
        known_vectors: Their vectors [m, H], whitened and of length 1.
        decay: Weight of an item in the history, as a fraction of that of the item after it.
    """

    index: VectorIndex
    known_items: Items
    known_vectors: Vectors
    decay: float

    @classmethod
    def from_vectors(
        cls, items: Items, vectors: Vectors, catalogue: Items, decay: float
    ) -> "TitleSource":
        """Builds the source from vectors as a model gives them.

        Hidden states of a language model have a few directions in which all texts differ much, and
        which hide what tells titles apart. So the vectors are whitened.

        Args:
            items: Items with a vector [m], ascending.
            vectors: Their vectors [m, H].
            catalogue: The items among them that can be found, ascending.
            decay: See the class.
        """
        unit = normalise(whiten(vectors))
        return cls(
            VectorIndex(catalogue, unit[np.searchsorted(items, catalogue)]), items, unit, decay
        )

    def find(self, histories: Histories, k: int) -> Items:
        """Finds the best candidates of each history; NO_ITEM if none of its items has a vector."""
        queries, known = self.embed_histories(histories)
        found = self.index.search(queries, k)
        return np.where(known[:, None], found, NO_ITEM)

    def embed_histories(self, histories: Histories) -> tuple[Vectors, Any]:
        """Embeds histories as weighted means of their items' vectors, the last weighing most.

        Args:
            histories: Items of each history, oldest first [n].

        Returns:
            Vectors [n, H], and whether any item of the history has a vector [n].
        """
        queries = np.zeros((len(histories), self.known_vectors.shape[1]), dtype=np.float32)
        known = np.zeros(len(histories), dtype=bool)
        for row, history in enumerate(histories):
            recent_first = np.array(history[::-1], dtype=np.int64)
            has_vector = np.isin(recent_first, self.known_items)
            weights = self.decay ** np.flatnonzero(has_vector)
            places = np.searchsorted(self.known_items, recent_first[has_vector])
            queries[row] = weights @ self.known_vectors[places]
            known[row] = has_vector.any()
        return queries, known


def whiten(vectors: Vectors) -> Vectors:
    """Takes the mean from vectors, and makes their variance about equal in all directions.

    A fraction of the mean variance is added to that of each direction, so that those in which the
    vectors hardly differ, as with fewer vectors than directions, are not blown up.

    Args:
        vectors: Vectors [n, H].
    """
    centred = vectors - vectors.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(vectors))
    added = WHITENING_RIDGE * variances.mean()
    if added <= 0:
        return np.asarray(centred, dtype=np.float32)
    scales = 1 / np.sqrt(np.maximum(variances, 0) + added)
    return np.asarray(centred @ (directions * scales), dtype=np.float32)


def normalise(vectors: Vectors) -> Vectors:
    """Scales vectors to length 1; a zero vector stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)
