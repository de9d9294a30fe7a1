"""Samples of one global batch that share tokens: the history of one user (train.targets_per_pass), a pool of candidates (train.shared_candidates).
Pure; inexact, so off unless a recipe asks for it (docs/decisions/009-shared-rows.md).

A group of samples is laid out as *strips* of tokens. A token sees what stands before it in its own strip, and of the strips before that what its
strip was given to see:

    head              This user has bought                            sees nothing else
    chain             {t1, t2, .. t9,                                 sees the head; the items of one user's samples, oldest first, each once
    pool              } in the previous. .. candidates are {ca, cb,   sees the head; only where candidates are shared
    and of each sample, where its candidates are its own,
      rest            t10} in the previous. .. answer                 sees the head and its window of the chain
    or where they are shared,
      last            t10}                                            sees the same
      rest            Choose only one .. answer                       sees the same, its last and the titles of the pool that are for it

Positions are those of the sample's own prompt as far as several samples can agree on them: see `_Layout`.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from corpus.sampling import hashing
from cprec.encode import title_tokens
from cprec.encode.title_tokens import Ints, TitleTokens, fragment_index, title_forms
from cprec.encode.tokens import EncodedSample


@dataclass(frozen=True)
class TokenSharing:
    """What samples share. targets: samples of one user that share one laying of their history, at most; 1: none do.

    candidates: titles of a pool that each of its samples sees, at least as far as the samples' own candidates go; 0: each has its own.
    """

    targets_per_pass: int = 1
    shared_candidates: int = 0

    def __bool__(self) -> bool:
        return self.targets_per_pass > 1 or self.shared_candidates > 0

    @property
    def max_pool_samples(self) -> int | None:
        """Samples of a pool, at most: half of what each sees is then nobody's target. None without pools."""
        return self.shared_candidates // 2 if self.shared_candidates else None


NO_SHARING = TokenSharing()


@dataclass(frozen=True)
class SharedRow:
    """A group of samples, laid out; it is packed like one sample. T tokens, N supervised, K strips, all arrays int32.

    members: [samples], their places in the global batch; ids, positions: [T]; counted: [N], places whose next token counts in the loss;
    strips: [K + 1], bounds of the strips; seen: the places that strips see before their own, strip after strip; seen_bounds: [K + 1], of these.
    """

    sample_indices: np.ndarray
    ids: np.ndarray
    position_ids: np.ndarray
    supervised_indices: np.ndarray
    strip_bounds: np.ndarray
    visible: np.ndarray
    visible_bounds: np.ndarray


@dataclass(frozen=True)
class SampleItems:
    """A sample as items. place: in the global batch; kind: samples of different kinds share nothing; user: what those of one user and source have in
    common; history: what is shown of it."""

    batch_index: int
    sharing_key: str
    user_key: int
    history: list[int]
    candidates: list[int]
    answer: int


def group_samples(
    rows: pa.Table,
    samples: Sequence[EncodedSample],
    titles: TitleTokens,
    sharing: TokenSharing,
    max_tokens: int,
) -> list[SharedRow]:
    """The samples of a global batch as groups: every sample is in one. No group of several reaches beyond position max_tokens.

    rows: of the corpus; tokens: of these, by whose lengths the longest histories were cut.
    """
    laid: list[SharedRow] = []
    waiting = list(_iter_groups(list_sample_items(rows, samples, sharing), sharing))[::-1]
    while waiting:
        group = waiting.pop()
        one = _SharedRowBuilder(titles, sharing).build(group)
        if len(group) > 1 and one.position_ids.max() >= max_tokens:
            half = len(group) // 2
            waiting += [group[half:], group[:half]]
        else:
            laid.append(one)
    return laid


def list_sample_items(
    rows: pa.Table, samples: Sequence[EncodedSample], sharing: TokenSharing
) -> list[SampleItems]:
    """Corpus rows by kind and id, so that samples of one user lie side by side.

    A kind is a source, and where candidates are shared a domain: a pool of several domains would give the answer's domain away, or ask for it.
    """
    ids = rows["sample_id"].to_numpy().view(np.uint64)
    users = hashing.group_bits(ids).tolist()
    columns = [
        rows[name].to_pylist() for name in ("source", "domain", "history", "candidates", "target")
    ]
    found = [
        SampleItems(
            place,
            f"{source} {domain}" if sharing.shared_candidates else source,
            users[place],
            history[samples[place].dropped_titles :],
            choices,
            choices[target],
        )
        for place, (source, domain, history, choices, target) in enumerate(
            zip(*columns, strict=True)
        )
    ]
    return [
        found[place]
        for place in sorted(range(len(found)), key=lambda p: (found[p].sharing_key, int(ids[p])))
    ]


def _iter_groups(
    samples: Sequence[SampleItems], sharing: TokenSharing
) -> Iterator[list[SampleItems]]:
    """Samples that are laid out together: those of a chain, or of several chains of one kind that share a pool."""
    group: list[SampleItems] = []
    for chain in build_chains(samples, sharing):
        together = [sample for sample, _ in chain.windows]
        fits = (
            sharing.max_pool_samples is not None
            and len(group) + len(together) <= sharing.max_pool_samples
        )
        if group and not (fits and group[0].sharing_key == together[0].sharing_key):
            yield group
            group = []
        group = [*group, *together]
    if group:
        yield group


@dataclass
class HistoryChain:
    """Items of one user in a row, and the samples whose histories are windows of it, each with the place where its window begins."""

    items: list[int]
    windows: list[tuple[SampleItems, int]]


def build_chains(samples: Iterable[SampleItems], sharing: TokenSharing) -> list[HistoryChain]:
    """Chains of neighbouring samples of one user: each begins within the chain of those before and goes on where that ends."""
    most = min(sharing.targets_per_pass, sharing.max_pool_samples or sharing.targets_per_pass)
    found: list[HistoryChain] = []
    for sample in samples:
        chain = found[-1] if found else HistoryChain([], [])
        known = chain.windows and (
            chain.windows[0][0].sharing_key,
            chain.windows[0][0].user_key,
        ) == (
            sample.sharing_key,
            sample.user_key,
        )
        if (
            not known
            or len(chain.windows) >= most
            or (at := find_overlap(chain.items, sample.history)) is None
        ):
            found.append(HistoryChain(list(sample.history), [(sample, 0)]))
            continue
        chain.items += sample.history[len(chain.items) - at :]
        chain.windows.append((sample, at))
    return found


def find_overlap(items: Sequence[int], window: Sequence[int]) -> int | None:
    """The first place from which a window equals the items, as far as these go; None if nothing overlaps."""
    return next(
        (
            at
            for at in range(len(items))
            if window and window[: len(items) - at] == items[at : at + len(window)]
        ),
        None,
    )


def build_candidate_pool(samples: Sequence[SampleItems], size: int) -> list[int]:
    """The titles that samples choose among, in an order that is a hash's: their targets, and of their own candidates as many others as it takes
    until each sample sees `size` titles, if there are so many."""
    chosen = dict.fromkeys(sample.answer for sample in samples)
    left = [hidden_items(sample, samples) for sample in samples]
    counts = [sum(item not in no for item in chosen) for no in left]
    for item in itertools.chain.from_iterable(
        itertools.zip_longest(*(sample.candidates for sample in samples))
    ):
        if min(counts) >= size:
            break
        if item is not None and item not in chosen:
            chosen[item] = None
            counts = [count + (item not in no) for count, no in zip(counts, left, strict=True)]
    items = np.array(list(chosen), dtype=np.int64)
    order = np.argsort(hashing.hash_integers(samples[0].user_key, items), kind="stable")
    return [int(item) for item in items[order]]


def hidden_items(sample: SampleItems, group: Sequence[SampleItems]) -> set[int]:
    """Titles of a pool that a sample must not see: its history, and what the same user takes at another time, which is no wrong answer."""
    of_user = {other.answer for other in group if other.user_key == sample.user_key}
    return (of_user | set(sample.history)) - {sample.answer}


@dataclass
class _SharedRowBuilder:
    """The strips of one group, as they are put down.

    Positions: the head's from 0, a chain's from there on, and the rest goes on where the sample's window ends. Where there is a pool all samples
    must have ended before it: chains are moved to the right, so that the last sample of each ends right before the pool.
    """

    titles: TitleTokens
    sharing: TokenSharing
    ids: list[np.ndarray] = field(default_factory=list)
    position_ids: list[np.ndarray] = field(default_factory=list)
    strip_bounds: list[int] = field(default_factory=lambda: [0])
    visible: list[np.ndarray] = field(default_factory=list)
    supervised_indices: list[np.ndarray] = field(default_factory=list)

    def build(self, group: Sequence[SampleItems]) -> SharedRow:
        """The group, laid out."""
        found = build_chains(group, self.sharing)
        head = self._add_strip([title_tokens.HEAD_FRAGMENT], 0, [])
        ends = [self._chain_extent(chain) for chain in found]
        common = max(ends)
        starts = [
            int(head[-1]) + (common - end if self.sharing.shared_candidates else 0) for end in ends
        ]
        edges = [
            self._add_strip(_chain_fragments(chain), start, [_index_range(head)])
            for chain, start in zip(found, starts, strict=True)
        ]
        taken = (
            build_candidate_pool(group, self.sharing.shared_candidates)
            if self.sharing.shared_candidates
            else []
        )
        pool_at = int(head[-1]) + common
        pooled = (
            self._add_strip(
                [title_tokens.BETWEEN_LISTS_FRAGMENT, *_candidate_fragments(taken)],
                pool_at,
                [_index_range(head)],
            )
            if taken
            else None
        )
        for chain, start, edge in zip(found, starts, edges, strict=True):
            for sample, at in chain.windows:
                # All of the window but its last title, whose form the chain does not have.
                within = edge[at : max(at + len(sample.history) - 1, at) + 1]
                before, position = (
                    [_index_range(head), _index_range(within)],
                    start + int(within[-1] - edge[0]),
                )
                if pooled is None:
                    self._add_answer_strip(
                        [
                            _last_history_fragment(sample),
                            title_tokens.BETWEEN_LISTS_FRAGMENT,
                            *_candidate_fragments(sample.candidates),
                        ],
                        sample,
                        position,
                        before,
                    )
                    continue
                last = self._add_strip([_last_history_fragment(sample)], position, before)
                no = hidden_items(sample, group)
                titles_seen = [
                    _index_range(pooled[i + 1 : i + 3])
                    for i, item in enumerate(taken)
                    if item not in no
                ]
                self._add_answer_strip(
                    [],
                    sample,
                    pool_at + int(pooled[-1] - pooled[0]),
                    [*before, _index_range(last), _index_range(pooled[:2]), *titles_seen],
                )
        members = [sample.batch_index for chain in found for sample, _ in chain.windows]
        arrays = (
            members,
            *map(_concat, (self.ids, self.position_ids, self.supervised_indices)),
            self.strip_bounds,
        )
        seen_bounds = np.cumsum([0, *map(len, self.visible)])
        return SharedRow(
            *(
                np.asarray(array, dtype=np.int32)
                for array in (*arrays, _concat(self.visible), seen_bounds)
            )
        )

    def _chain_extent(self, chain: HistoryChain) -> int:
        """Tokens from a chain's first to the end of the last of its samples' histories."""
        sizes = np.cumsum([0, *self._fragment_lengths(_chain_fragments(chain))])
        return max(
            int(
                sizes[max(at + len(sample.history) - 1, at)]
                + self._fragment_lengths([_last_history_fragment(sample)])[0]
            )
            for sample, at in chain.windows
        )

    def _add_answer_strip(
        self, fragments: list[int], sample: SampleItems, position: int, visible: list[np.ndarray]
    ) -> None:
        """The strip that ends with a sample's answer."""
        answer = [
            int(fragment_index(sample.answer, title_tokens.ANSWER_FORM)),
            title_tokens.EOS_FRAGMENT,
        ]
        edges = self._add_strip(
            [*fragments, title_tokens.TAIL_FRAGMENT, *answer], position, visible
        )
        self.supervised_indices.append(np.arange(edges[-3] - 1, edges[-1] - 1))

    def _add_strip(
        self, fragments: Sequence[int], position: int, visible: list[np.ndarray]
    ) -> np.ndarray:
        """Put a strip down. Returns the places where its pieces begin, and where it ends."""
        edges = self.strip_bounds[-1] + np.cumsum([0, *self._fragment_lengths(fragments)])
        if len(fragments):
            self.ids.append(self.titles.gather(np.array(fragments, dtype=np.int64)))
            self.position_ids.append(np.arange(edges[-1] - edges[0]) + position)
            self.strip_bounds.append(int(edges[-1]))
            self.visible.append(_concat(visible))
        return edges

    def _fragment_lengths(self, fragments: Sequence[int]) -> Ints:
        at = np.array(fragments, dtype=np.int64)
        return self.titles.offsets[at + 1] - self.titles.offsets[at]


def _chain_fragments(chain: HistoryChain) -> list[int]:
    """All items but the last, which every window that reaches it has in a form of its own."""
    return [
        int(fragment_index(item, title_tokens.INNER_FORM if i else title_tokens.FIRST_FORM))
        for i, item in enumerate(chain.items[:-1])
    ]


def _last_history_fragment(sample: SampleItems) -> int:
    if not sample.history:
        return title_tokens.EMPTY_HISTORY_FRAGMENT
    return int(
        fragment_index(
            sample.history[-1],
            title_tokens.ONLY_OF_HISTORY_FORM
            if len(sample.history) == 1
            else title_tokens.LAST_OF_HISTORY_FORM,
        )
    )


def _candidate_fragments(items: Sequence[int]) -> list[int]:
    found: list[int] = fragment_index(
        np.array(items, np.int64),
        title_forms(
            np.array([len(items)]),
            title_tokens.LAST_OF_CANDIDATES_FORM,
            title_tokens.ONLY_OF_CANDIDATES_FORM,
        ),
    ).tolist()
    return found


def _index_range(edges: np.ndarray) -> np.ndarray:
    """All places from the first edge to the last."""
    return np.arange(edges[0], edges[-1])


def _concat(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
