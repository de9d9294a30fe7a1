"""Which samples of a global batch share tokens, and which items their rows hold. Pure.

`cprec.stream.token_sharing` lays the groups out as rows of tokens.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from corpus.sampling import hashing
from cprec.encode.tokens import EncodedSample


@dataclass(frozen=True)
class TokenSharing:
    """What the samples of a group share; its truth value is false if they share nothing.

    Attributes:
        targets_per_pass: Maximum number of one user's samples that share a history; 1: none do.
        shared_candidates: Minimum number of titles that each sample sees of its pool, unless the
            candidates of the samples run out before. 0: each sample has its own candidates.
    """

    targets_per_pass: int = 1
    shared_candidates: int = 0

    def __bool__(self) -> bool:
        return self.targets_per_pass > 1 or self.shared_candidates > 0

    @property
    def max_pool_samples(self) -> int | None:
        """Maximum number of samples of a pool; None without pools.

        It ensures that at least half of what a sample sees is no sample's target.
        """
        return self.shared_candidates // 2 if self.shared_candidates else None


NO_SHARING = TokenSharing()


@dataclass(frozen=True)
class SampleItems:
    """A sample as item indices.

    Attributes:
        batch_index: Index in the global batch.
        sharing_key: Samples share tokens only if their keys are equal.
        user_key: The bits of the sample id that all samples of one user and source have in common.
        history: Items of the history without the dropped ones, oldest first.
        candidates: The sample's own candidates.
        answer: The candidate that the user took.
    """

    batch_index: int
    sharing_key: str
    user_key: int
    history: list[int]
    candidates: list[int]
    answer: int


def list_sample_items(
    rows: pa.Table, samples: Sequence[EncodedSample], sharing: TokenSharing
) -> list[SampleItems]:
    """Returns corpus rows as items, sorted by sharing key and id: samples of a user are neighbours.

    The sharing key is the source and, where candidates are shared, the domain of the answer. A
    pool of several domains would let the model rule out candidates by their domain.

    Args:
        rows: Corpus rows of a global batch.
        samples: The encoded rows, for the number of titles dropped from each history.
        sharing: What samples may share.
    """
    ids = rows["sample_id"].to_numpy().view(np.uint64)
    user_keys = hashing.group_bits(ids).tolist()
    columns = [
        rows[name].to_pylist() for name in ("source", "domain", "history", "candidates", "target")
    ]
    items = [
        SampleItems(
            batch_index=index,
            sharing_key=f"{source} {domain}" if sharing.shared_candidates else source,
            user_key=user_keys[index],
            history=history[samples[index].dropped_titles :],
            candidates=candidates,
            answer=candidates[target],
        )
        for index, (source, domain, history, candidates, target) in enumerate(
            zip(*columns, strict=True)
        )
    ]
    return sorted(items, key=lambda sample: (sample.sharing_key, int(ids[sample.batch_index])))


def iter_groups(
    samples: Sequence[SampleItems], sharing: TokenSharing
) -> Iterator[list[SampleItems]]:
    """Yields the samples of each group: one chain, or several of one sharing key with a pool."""
    group: list[SampleItems] = []
    for chain in build_chains(samples, sharing):
        chain_samples = [sample for sample, _ in chain.windows]
        fits = (
            sharing.max_pool_samples is not None
            and len(group) + len(chain_samples) <= sharing.max_pool_samples
        )
        if group and not (fits and group[0].sharing_key == chain_samples[0].sharing_key):
            yield group
            group = []
        group = [*group, *chain_samples]
    if group:
        yield group


@dataclass
class HistoryChain:
    """Successive items of one user, and the samples whose histories are windows of them.

    Attributes:
        items: The items, oldest first.
        windows: Each sample with the index in `items` where its history begins.
    """

    items: list[int]
    windows: list[tuple[SampleItems, int]]


def build_chains(samples: Iterable[SampleItems], sharing: TokenSharing) -> list[HistoryChain]:
    """Joins neighbouring samples of one user into chains, as long as their histories overlap.

    Each history of a chain begins within the items so far, and the chain grows by the rest of it.

    Args:
        samples: Samples in the order of `list_sample_items`.
        sharing: Limits the number of samples of a chain.
    """
    max_samples = min(
        sharing.targets_per_pass, sharing.max_pool_samples or sharing.targets_per_pass
    )
    chains: list[HistoryChain] = []
    for sample in samples:
        start = None
        if chains and len(chains[-1].windows) < max_samples:
            chain = chains[-1]
            first, _ = chain.windows[0]
            if (first.sharing_key, first.user_key) == (sample.sharing_key, sample.user_key):
                start = find_overlap(chain.items, sample.history)
        if start is None:
            chains.append(HistoryChain(list(sample.history), [(sample, 0)]))
        else:
            chain.items += sample.history[len(chain.items) - start :]
            chain.windows.append((sample, start))
    return chains


def find_overlap(items: Sequence[int], window: Sequence[int]) -> int | None:
    """Returns the first index in `items` at which `window` equals the items that it covers.

    The window may extend beyond the end of `items`. None if it fits nowhere, or is empty.
    """
    return next(
        (
            start
            for start in range(len(items))
            if window and window[: len(items) - start] == items[start : start + len(window)]
        ),
        None,
    )


def build_candidate_pool(samples: Sequence[SampleItems], size: int) -> list[int]:
    """Returns the items that the samples of a group choose from, in the order of a hash.

    These are all answers, and then candidates of each sample in turn until every sample sees `size`
    items, or until there are no more candidates.

    Args:
        samples: The group.
        size: Number of items that each sample should see. Those hidden from it do not count.
    """
    pool = dict.fromkeys(sample.answer for sample in samples)  # a set that keeps its order
    hidden = [hidden_items(sample, samples) for sample in samples]
    visible_counts = [sum(item not in hidden_set for item in pool) for hidden_set in hidden]
    for item in itertools.chain.from_iterable(
        itertools.zip_longest(*(sample.candidates for sample in samples))
    ):
        if min(visible_counts) >= size:
            break
        if item is not None and item not in pool:
            pool[item] = None
            visible_counts = [
                count + (item not in hidden_set)
                for count, hidden_set in zip(visible_counts, hidden, strict=True)
            ]
    items = np.array(list(pool), dtype=np.int64)
    order = np.argsort(hashing.hash_integers(samples[0].user_key, items), kind="stable")
    return [int(item) for item in items[order]]


def hidden_items(sample: SampleItems, group: Sequence[SampleItems]) -> set[int]:
    """Returns the items that a sample must not see among the candidates that its group shares.

    These are its history, and the answers of the group's other samples of its user. The user chose
    them too, so they cannot serve as wrong candidates. The sample's own answer is never hidden.

    Args:
        sample: The sample.
        group: All samples of the group.
    """
    user_answers = {other.answer for other in group if other.user_key == sample.user_key}
    return (user_answers | set(sample.history)) - {sample.answer}
