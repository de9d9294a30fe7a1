"""Streams of the corpus as portions of a plan: which streams, and what each has left."""

from collections.abc import Collection, Iterable

from corpus.sampling.source import SourceKind
from corpus.store.tables import Stream
from cprec.schedule.passes import Passes
from cprec.schedule.plan import Portion
from cprec.schedule.planning import Replay


def select_streams(
    streams: Iterable[Stream], kind: SourceKind, passed_over: Collection[str] = ()
) -> list[Stream]:
    """Selects the streams of one kind of source, without those of some domains."""
    return [
        stream
        for stream in streams
        if stream.source.kind is kind and stream.source.name not in passed_over
    ]


def domain_names(domain_streams: Iterable[Stream]) -> tuple[str, ...]:
    """Returns the domains of some streams, each once."""
    return tuple(dict.fromkeys(stream.source.name for stream in domain_streams))


def remaining_portions(
    streams: Iterable[Stream], passes: Passes, consumed: Iterable[Portion] = ()
) -> list[Portion]:
    """Returns what is left to read of each stream, as portions; empty ones are omitted.

    Args:
        streams: The streams.
        passes: How often their rows are read.
        consumed: Portions from row 0 on that were consumed, of these and of other streams.
    """
    consumed_rows = {(portion.source, portion.version): portion.count for portion in consumed}
    portions = []
    for stream in streams:
        first = consumed_rows.get((stream.source, stream.version), 0)
        stop = passes.total_rows(stream.source, stream.rows)
        if first < stop:
            portions.append(Portion(stream.source, stream.version, first, stop - first))
    return portions


def build_replay(
    fraction: float, streams: Iterable[Stream], passes: Passes, consumed: Iterable[Portion]
) -> Replay:
    """Builds the replay of a run.

    Args:
        fraction: Fraction of the samples up to S that are windows of text.
        streams: Streams of the corpus, all of whose text is replayed.
        passes: How often windows of text are read, at most.
        consumed: Portions that were consumed before.
    """
    texts = select_streams(streams, SourceKind.TEXT)
    return Replay(fraction, tuple(remaining_portions(texts, passes, consumed)))
