"""The rules of a corpus as slow loops over plain rows.

They share no code with the implementation that they are compared with.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from corpus.settings import DataSettings
from tests.unit.corpus.worlds import Row


def core(rows: Sequence[Row], k: int, known: Collection[str] = ()) -> list[Row]:
    """Returns the k-core, by dropping the rows of one offending user or item at a time.

    Args:
        rows: The interactions.
        k: Interactions that every user and item must have, at least.
        known: Users and items that count as having k interactions.
    """
    rows = list(rows)
    while True:
        names = (
            (place, name) for place in (1, 0) for name in {r[place] for r in rows} - set(known)
        )
        offending = next(
            ((place, name) for place, name in names if sum(r[place] == name for r in rows) < k),
            None,
        )
        if offending is None:
            return rows
        rows = [r for r in rows if r[offending[0]] != offending[1]]


def samples_of(
    world: Mapping[str, Sequence[Row]], data: DataSettings
) -> tuple[dict[tuple[str, str], Counter[tuple[object, ...]]], Counter[str]]:
    """Makes the samples of version 0, by a loop over users and positions.

    Args:
        world: The interactions of each domain, after k-core.
        data: The rules.

    Returns:
        Samples (user, domain, history ids, target id, time) by (source, split), and the targets
        without a sample, by reason.
    """
    samples: dict[tuple[str, str], Counter[tuple[object, ...]]] = {}
    dropped: Counter[str] = Counter()
    for user in sorted({row[0] for rows in world.values() for row in rows}):
        training = []
        for domain in world:
            sequence = sorted((time, item) for name, item, time in world[domain] if name == user)
            for place, (time, item) in enumerate(sequence):
                split = {len(sequence) - 1: "test", len(sequence) - 2: "validation"}.get(
                    place, "train"
                )
                if split == "train" and domain in data.domains:
                    training.append((time, domain, item))
                if place < data.min_history:
                    dropped["short_history"] += 1
                    continue
                history = tuple(i for _, i in sequence[max(0, place - data.max_history) : place])
                source = f"{'downstream' if domain in data.held_out else 'domain'}/{domain}"
                samples.setdefault((source, split), Counter())[
                    user, domain, history, item, time
                ] += 1
        training.sort()
        for place, (time, domain, item) in enumerate(training):
            window = training[max(0, place - data.max_history) : place]
            if place < data.min_history:
                dropped["mixed_short_history"] += 1
            elif len({d for _, d, _ in window}) < data.mixed_min_domains:
                dropped["mixed_too_few_domains"] += 1
            elif sum(d == domain for _, d, _ in window) < data.mixed_min_target_domain:
                dropped["mixed_too_few_of_target_domain"] += 1
            else:
                samples.setdefault(("mixed", "train"), Counter())[
                    user, domain, tuple(i for *_, i in window), item, time
                ] += 1
    return samples, dropped
