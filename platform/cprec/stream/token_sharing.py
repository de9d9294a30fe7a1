"""Rows of tokens in which several samples of a global batch share tokens. Pure.

Samples can share the history of their user (train.targets_per_pass) and a pool of candidates
(train.shared_candidates). Both change what is trained, so both are off unless the recipe asks for
them (docs/decisions/009-shared-rows.md).

A group of samples is laid out as *strips* of tokens. A token sees the tokens before it in its own
strip, and those tokens of earlier strips that are listed for its strip:

    strip   example                                 earlier tokens that it sees
    head    This user has bought                    none
    chain   {t1, t2, .. t9,                         the head
    pool    } in the previous. .. are {ca, cb,      the head

A chain holds the items of one user's samples, oldest first, each once. There is a pool only where
candidates are shared. Each sample adds one strip if its candidates are its own, else two:

    rest    t10} in the previous. .. answer         the head, its window of the chain

    last    t10}                                    the head, its window of the chain
    rest    Choose only one .. answer               the same, `last`, its titles of the pool

Positions are those of the sample's own prompt as far as several samples can agree on them: see
`_SharedRowBuilder`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from cprec.encode import title_tokens
from cprec.encode.title_tokens import TitleTokens, fragment_index, title_forms
from cprec.encode.tokens import EncodedSample
from cprec.stream.sharing_groups import (
    HistoryChain,
    SampleItems,
    TokenSharing,
    build_candidate_pool,
    build_chains,
    hidden_items,
    iter_groups,
    list_sample_items,
)


@dataclass(frozen=True)
class SharedRow:
    """A group of samples laid out as strips of tokens; it is packed like one sample.

    All arrays are int32. Shapes: S samples, T tokens, N supervised tokens, K strips.

    Attributes:
        sample_indices: Indices of the samples in the global batch, [S].
        ids: Token ids, [T].
        position_ids: Positions, [T].
        supervised_indices: Indices of the tokens whose next token counts in the loss, [N].
        strip_bounds: Bounds between strips, [K + 1].
        visible: Indices of the earlier tokens that each strip sees, one strip after the other.
        visible_bounds: Bounds in `visible` between strips, [K + 1].
    """

    sample_indices: np.ndarray
    ids: np.ndarray
    position_ids: np.ndarray
    supervised_indices: np.ndarray
    strip_bounds: np.ndarray
    visible: np.ndarray
    visible_bounds: np.ndarray


def group_samples(
    rows: pa.Table,
    samples: Sequence[EncodedSample],
    titles: TitleTokens,
    sharing: TokenSharing,
    max_tokens: int,
) -> list[SharedRow]:
    """Lays out the samples of a global batch in groups, every sample in exactly one.

    A group that would reach beyond position `max_tokens` is halved, down to single samples.

    Args:
        rows: Corpus rows of the global batch.
        samples: The encoded rows, for the number of titles dropped from each history.
        titles: Title tokens of the corpus.
        sharing: What samples may share.
        max_tokens: Maximum length of a sample, in tokens.
    """
    shared_rows: list[SharedRow] = []
    groups = list(iter_groups(list_sample_items(rows, samples, sharing), sharing))
    pending = groups[::-1]  # a stack
    while pending:
        group = pending.pop()
        shared_row = _SharedRowBuilder(titles, sharing).build(group)
        if len(group) > 1 and shared_row.position_ids.max() >= max_tokens:
            half = len(group) // 2
            pending += [group[half:], group[:half]]
        else:
            shared_rows.append(shared_row)
    return shared_rows


@dataclass
class _SharedRowBuilder:
    """Builder of the row of one group, strip by strip.

    Positions: the head begins at 0, each chain after the head, and a sample's own strips where its
    window ends. A pool has one position for all samples, so all histories have to end before it.
    Chains are therefore moved to the right, until the last history of each ends where it begins.
    """

    titles: TitleTokens
    sharing: TokenSharing
    ids: list[np.ndarray] = field(default_factory=list)
    position_ids: list[np.ndarray] = field(default_factory=list)
    strip_bounds: list[int] = field(default_factory=lambda: [0])
    visible: list[np.ndarray] = field(default_factory=list)
    supervised_indices: list[np.ndarray] = field(default_factory=list)

    def build(self, group: Sequence[SampleItems]) -> SharedRow:
        """Returns the row of a group."""
        chains = build_chains(group, self.sharing)
        # The strips that samples share: head, chains, pool.
        head = self._add_strip([title_tokens.HEAD_FRAGMENT], 0, [])
        extents = [self._chain_extent(chain) for chain in chains]
        max_extent = max(extents)
        chain_positions = [
            int(head[-1]) + (max_extent - extent if self.sharing.shared_candidates else 0)
            for extent in extents
        ]
        chain_edges = [
            self._add_strip(_chain_fragments(chain), position, [_index_range(head)])
            for chain, position in zip(chains, chain_positions, strict=True)
        ]
        pool_items = (
            build_candidate_pool(group, self.sharing.shared_candidates)
            if self.sharing.shared_candidates
            else []
        )
        pool_position = int(head[-1]) + max_extent
        pool = (
            self._add_strip(
                [title_tokens.BETWEEN_LISTS_FRAGMENT, *_candidate_fragments(pool_items)],
                pool_position,
                [_index_range(head)],
            )
            if pool_items
            else None
        )
        # The strips of each sample.
        for chain, chain_position, edges in zip(chains, chain_positions, chain_edges, strict=True):
            for sample, start in chain.windows:
                # All of the window but its last title, whose form the chain does not have.
                window = edges[start : max(start + len(sample.history) - 1, start) + 1]
                visible = [_index_range(head), _index_range(window)]
                position = chain_position + int(window[-1] - edges[0])
                if pool is None:
                    self._add_answer_strip(
                        [
                            _last_history_fragment(sample),
                            title_tokens.BETWEEN_LISTS_FRAGMENT,
                            *_candidate_fragments(sample.candidates),
                        ],
                        sample,
                        position,
                        visible,
                    )
                    continue
                last = self._add_strip([_last_history_fragment(sample)], position, visible)
                hidden = hidden_items(sample, group)
                # Fragment 0 of the pool is the text before its titles.
                visible_titles = [
                    _index_range(pool[i + 1 : i + 3])
                    for i, item in enumerate(pool_items)
                    if item not in hidden
                ]
                self._add_answer_strip(
                    [],
                    sample,
                    pool_position + int(pool[-1] - pool[0]),
                    [*visible, _index_range(last), _index_range(pool[:2]), *visible_titles],
                )
        return SharedRow(
            sample_indices=_int32(
                [sample.batch_index for chain in chains for sample, _ in chain.windows]
            ),
            ids=_int32(_concat(self.ids)),
            position_ids=_int32(_concat(self.position_ids)),
            supervised_indices=_int32(_concat(self.supervised_indices)),
            strip_bounds=_int32(self.strip_bounds),
            visible=_int32(_concat(self.visible)),
            visible_bounds=_int32(np.cumsum([0, *map(len, self.visible)])),
        )

    def _chain_extent(self, chain: HistoryChain) -> int:
        """Returns the tokens from the chain's first to the end of the history that ends last."""
        edges = np.cumsum([0, *self._fragment_lengths(_chain_fragments(chain))])
        return max(
            int(
                edges[max(start + len(sample.history) - 1, start)]
                + self._fragment_lengths([_last_history_fragment(sample)])[0]
            )
            for sample, start in chain.windows
        )

    def _add_answer_strip(
        self, fragments: list[int], sample: SampleItems, position: int, visible: list[np.ndarray]
    ) -> None:
        """Adds the strip of these fragments, the tail and the answer; the answer is supervised."""
        answer = [
            int(fragment_index(sample.answer, title_tokens.ANSWER_FORM)),
            title_tokens.EOS_FRAGMENT,
        ]
        edges = self._add_strip(
            [*fragments, title_tokens.TAIL_FRAGMENT, *answer], position, visible
        )
        # A position is supervised if the next token belongs to the answer or ends the sample.
        self.supervised_indices.append(np.arange(edges[-3] - 1, edges[-1] - 1))

    def _add_strip(
        self, fragments: Sequence[int], position: int, visible: list[np.ndarray]
    ) -> np.ndarray:
        """Adds a strip; one without fragments adds nothing.

        Args:
            fragments: Its fragments.
            position: Position of its first token.
            visible: Indices in the row of the earlier tokens that it sees.

        Returns:
            The indices in the row where its fragments begin, and where it ends, [fragments + 1].
        """
        edges: np.ndarray = self.strip_bounds[-1] + np.cumsum(
            [0, *self._fragment_lengths(fragments)]
        )
        if len(fragments):
            self.ids.append(self.titles.gather(np.array(fragments, dtype=np.int64)))
            self.position_ids.append(np.arange(edges[-1] - edges[0]) + position)
            self.strip_bounds.append(int(edges[-1]))
            self.visible.append(_concat(visible))
        return edges

    def _fragment_lengths(self, fragments: Sequence[int]) -> np.ndarray:
        return self.titles.lengths(np.array(fragments, dtype=np.int64))


def _chain_fragments(chain: HistoryChain) -> list[int]:
    """Returns the fragments of all items but the last.

    A history that ends with the last item has it as a fragment of its own, in another form.
    """
    return [
        int(fragment_index(item, title_tokens.INNER_FORM if i else title_tokens.FIRST_FORM))
        for i, item in enumerate(chain.items[:-1])
    ]


def _last_history_fragment(sample: SampleItems) -> int:
    """Returns the fragment that ends a history."""
    if not sample.history:
        return title_tokens.EMPTY_HISTORY_FRAGMENT
    form = (
        title_tokens.ONLY_OF_HISTORY_FORM
        if len(sample.history) == 1
        else title_tokens.LAST_OF_HISTORY_FORM
    )
    return int(fragment_index(sample.history[-1], form))


def _candidate_fragments(items: Sequence[int]) -> list[int]:
    """Returns the fragments of a list of candidates."""
    forms = title_forms(
        np.array([len(items)]),
        title_tokens.LAST_OF_CANDIDATES_FORM,
        title_tokens.ONLY_OF_CANDIDATES_FORM,
    )
    fragments: list[int] = fragment_index(np.array(items, np.int64), forms).tolist()
    return fragments


def _index_range(edges: np.ndarray) -> np.ndarray:
    """Returns all indices from the first edge up to the last."""
    return np.arange(edges[0], edges[-1])


def _concat(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenates arrays, of which there may be none."""
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def _int32(values: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)
