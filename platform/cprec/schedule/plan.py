"""The plan: which sample is trained at which position, as a closed formula.

A plan is a sequence of eras. An era takes rows from its portions (ranges of corpus streams) at an
even pace: after x of N positions, a portion of n rows has given about x * n / N of them. So no
stretch is one domain, and after N positions the portion has given exactly n. Replayed text is
spread over an era in the same way (docs/decisions/010-replay.md).

Every count is the floor of a product, so any position is computed on its own, in memory that
depends on the number of portions alone. The order depends on no worker, no clock and no restart
(docs/decisions/005-plan.md).

The corpus stores the rows of a stream in the order of a hash; `permute_rows` lets the seed decide
in which order they are read.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from cprec.schedule.wsa import WSA, Mode

BLOCK_ROWS = 1024
"""Rows that stay together when a stream is permuted.

A block is a row group of the table, so that reading stays sequential.
"""

MAX_ERA_SAMPLES = 3_000_000_000
"""Samples of an era, at most: the products that are floored must fit into 63 bits."""

StreamKey = tuple[str, int]
"""(source, corpus version)."""


@dataclass(frozen=True)
class Portion:
    """A contiguous range of rows of one stream.

    Attributes:
        source: Source of the stream.
        version: Corpus version of the stream.
        first: First row, counted in the stream's permuted order (`permute_rows`).
        count: Number of rows. The range may go on beyond the end of the stream, into further
            passes over it.
    """

    source: str
    version: int
    first: int
    count: int


@dataclass(frozen=True)
class Era:
    """A stretch of the plan that takes its samples from fixed portions.

    A new era begins where the corpus gains samples, and where annealing begins.

    Attributes:
        start: First position.
        stop: Position after the last one. It may be before the portions are used up: the rest
            goes into the next era, or is beyond the run's cap.
        portions: Portions of samples.
        seed: Seed of the run; it shifts the positions that a portion's rows take.
        replayed: Portions of text, placed between the samples of `portions`.
        spread: Positions over which all rows of the text are spread; 0 without text.
    """

    start: int
    stop: int
    portions: tuple[Portion, ...]
    seed: int
    replayed: tuple[Portion, ...] = ()
    spread: int = 0

    def __post_init__(self) -> None:
        text_rows = sum(portion.count for portion in self.replayed)
        all_rows = self.portion_rows + text_rows
        capacity = self.spread if self.replayed else self.portion_rows
        if any(portion.count < 0 for portion in self.all_portions) or all_rows > MAX_ERA_SAMPLES:
            raise ValueError(
                f"an era holds at most {MAX_ERA_SAMPLES:,} samples and no negative portion, "
                f"got {all_rows:,}"
            )
        if not (
            self.start <= self.stop <= self.start + capacity and text_rows <= capacity <= all_rows
        ):
            raise ValueError(
                f"an era of {self.portion_rows} samples and {text_rows} of text from "
                f"{self.start}, spread over {capacity}, cannot end at {self.stop}"
            )

    @property
    def portion_rows(self) -> int:
        """Samples of all portions but the replayed, including those after `stop`."""
        return sum(portion.count for portion in self.portions)

    @property
    def all_portions(self) -> tuple[Portion, ...]:
        """All portions, the replayed last; `rows_before` and `locate_rows` number them so."""
        return (*self.portions, *self.replayed)

    def rows_before(self, positions: np.ndarray) -> np.ndarray:
        """Returns how many rows each portion has given before each position.

        Args:
            positions: Positions in start..stop ([n] int64).

        Returns:
            Counts of rows ([portions, n] int64), in the order of `all_portions`. From one position
            to the next exactly one of them grows, by 1.
        """
        offsets = [_hash(self.seed, self.start, i) for i in range(len(self.all_portions))]
        num_portions = len(self.portions)
        elapsed = positions - self.start
        # Text takes its positions first; the samples share those that are left. So replay does
        # not change the order of the samples.
        text = _rows_before(elapsed, self.replayed, self.spread, offsets[num_portions:])
        samples = _rows_before(
            elapsed - text.sum(axis=0), self.portions, self.portion_rows, offsets[:num_portions]
        )
        return np.concatenate([samples, text])

    def replayed_rows_before(self, position: int) -> int:
        """Returns the number of replayed rows of text before a position."""
        rows = self.rows_before(np.array([position], dtype=np.int64))
        return int(rows[len(self.portions) :].sum())

    def locate_rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the portion and the row that fill each of the run's positions start .. stop - 1.

        Args:
            start: First position.
            stop: Position after the last one.

        Returns:
            For each position its portion, as an index into `all_portions`, and its row, counted in
            the permuted order of the portion's stream (`permute_rows`); both [stop - start] int64.

        Raises:
            ValueError: The positions are outside of the era.
        """
        if not self.start <= start <= stop <= self.stop:
            raise ValueError(
                f"positions {start}..{stop} are outside of the era {self.start}..{self.stop}"
            )
        rows = self.rows_before(np.arange(start, stop + 1, dtype=np.int64))
        # The one portion whose count grows at a position has the sample of that position.
        portion = (
            np.argmax(np.diff(rows, axis=1), axis=0)
            if stop > start
            else np.zeros(0, dtype=np.int64)
        )
        first = np.array([p.first for p in self.all_portions], dtype=np.int64)
        return portion, first[portion] + rows[portion, np.arange(stop - start)]

    def remaining_portions(self, position: int) -> tuple[Portion, ...]:
        """Returns what the portions have left from a position on, including rows after `stop`.

        Empty portions are omitted. So is replayed text, because every era spreads it anew.
        """
        rows = self.rows_before(np.array([position], dtype=np.int64))
        consumed = rows[: len(self.portions), 0].tolist()
        remaining = (
            Portion(portion.source, portion.version, portion.first + n, portion.count - n)
            for portion, n in zip(self.portions, consumed, strict=True)
        )
        return tuple(portion for portion in remaining if portion.count)

    def truncate(self, stop: int) -> "Era":
        """Returns this era with an earlier end; the samples before it are unchanged."""
        return replace(self, stop=stop)


def _rows_before(
    elapsed: np.ndarray, portions: tuple[Portion, ...], total: int, offsets: list[int]
) -> np.ndarray:
    """Spreads portions evenly over a number of positions.

    Portion after portion: of the positions that the earlier ones leave, a portion of n rows takes
    floor((positions * n + offset) / total), where total, too, counts what the earlier ones leave.
    Each count grows by 0 or 1 per position and is n at the end, because offset < total.

    Args:
        elapsed: Positions that have passed ([k] int64).
        portions: Portions to spread.
        total: Positions to spread them over.
        offsets: One hash per portion.

    Returns:
        Rows of each portion that were taken by then ([portions, k] int64).
    """
    rows = np.zeros((len(portions), len(elapsed)), dtype=np.int64)
    for i, (portion, offset) in enumerate(zip(portions, offsets, strict=True)):
        if total == 0:
            break
        rows[i] = (elapsed * portion.count + offset % total) // total
        elapsed = elapsed - rows[i]
        total -= portion.count
    return rows


@dataclass(frozen=True)
class Plan:
    """All samples that a run trains, in order.

    Attributes:
        eras: Eras of domain-specific samples up to S, then one last era of mixed samples up to A.
        wsa: The schedule.
        inherited: What earlier runs of the trunk had consumed when this one began, as portions
            from row 0 on.
        mixed_ratio: Mixed samples that are planned for each domain-specific one, as far as there
            are any. It never falls. None: all mixed samples are planned, or an earlier release
            wrote the plan.

    Raises:
        ValueError: The eras do not follow each other from 0, or do not fit the ends of the phases.
    """

    eras: tuple[Era, ...]
    wsa: WSA
    inherited: tuple[Portion, ...] = ()
    mixed_ratio: Fraction | None = None

    def __post_init__(self) -> None:
        starts = [era.start for era in self.eras]
        stops = [era.stop for era in self.eras]
        if len(self.eras) < 2 or starts != [0, *stops[:-1]]:
            raise ValueError(
                "two or more eras must follow each other from 0, "
                f"got starts {starts} and ends {stops}"
            )
        if (stops[-2], stops[-1]) != (self.wsa.stable_end, self.wsa.annealing_end):
            raise ValueError(
                f"S={self.wsa.stable_end} and A={self.wsa.annealing_end} must be the ends of the "
                f"last two eras, {stops}"
            )

    @property
    def total_samples(self) -> int:
        """A, all samples of the run."""
        return self.wsa.annealing_end

    @property
    def annealing_samples(self) -> int:
        """Samples of the annealing phase, from S to A."""
        return self.wsa.annealing_end - self.wsa.stable_end

    @property
    def domain_eras(self) -> tuple[Era, ...]:
        """The eras up to S."""
        return self.eras[:-1]

    @property
    def annealing_era(self) -> Era:
        """The era from S to A; empty in modes that do not anneal on mixed samples."""
        return self.eras[-1]

    def find_era(self, position: int) -> Era:
        """Finds the era that holds a position.

        Raises:
            ValueError: The position is outside of 0..A-1.
        """
        for era in self.eras:
            if era.start <= position < era.stop:
                return era
        raise ValueError(f"position {position} is outside of the plan, 0..{self.total_samples - 1}")

    def count_by_stream(self, start: int, stop: int) -> dict[StreamKey, int]:
        """Counts the samples at positions start .. stop - 1 by stream, replayed text included."""
        counts: dict[StreamKey, int] = {}
        for era in self.eras:
            low, high = max(start, era.start), min(stop, era.stop)
            if low >= high:
                continue
            rows = era.rows_before(np.array([low, high], dtype=np.int64))
            rows_between = np.diff(rows, axis=1)[:, 0].tolist()
            for portion, count in zip(era.all_portions, rows_between, strict=True):
                if count:
                    key = (portion.source, portion.version)
                    counts[key] = counts.get(key, 0) + count
        return counts

    def consumed_portions(self, samples: int) -> tuple[Portion, ...]:
        """Returns what the trunk has consumed when this run has seen a number of samples.

        That is what this run and the runs before it have read: one portion per stream, from row 0.
        """
        rows = {(p.source, p.version): p.count for p in self.inherited}
        for key, count in self.count_by_stream(0, samples).items():
            rows[key] = rows.get(key, 0) + count
        return tuple(
            Portion(source, version, 0, count) for (source, version), count in sorted(rows.items())
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as plain data; `Plan.from_json` reads it back to an equal plan."""
        values = asdict(self)
        # A plan without a ratio reads as before there was one, so that digests of it stay.
        ratio = values.pop("mixed_ratio")
        return values if ratio is None else {**values, "mixed_ratio": str(ratio)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Plan":
        """Reads a plan from the plain data of `to_json`."""
        wsa = {**values["wsa"], "mode": Mode(values["wsa"]["mode"])}
        return cls(
            tuple(_era_from_json(era) for era in values["eras"]),
            WSA(**wsa),
            _portions_from_json(values["inherited"]),
            Fraction(values["mixed_ratio"]) if "mixed_ratio" in values else None,
        )


def _era_from_json(values: dict[str, Any]) -> Era:
    """Reads an era; one that was written before there was replay has no `replayed`."""
    portions = {
        "portions": _portions_from_json(values["portions"]),
        "replayed": _portions_from_json(values.get("replayed", [])),
    }
    return Era(**{**values, **portions})


def _portions_from_json(values: list[dict[str, Any]]) -> tuple[Portion, ...]:
    return tuple(Portion(**portion) for portion in values)


def permute_rows(
    rows: np.ndarray, stream_rows: int, seed: int, source: str, version: int
) -> np.ndarray:
    """Translates rows of a stream's permuted order to rows of the table.

    Blocks of `BLOCK_ROWS` rows change places; a shorter last block stays last. For every seed and
    pass this is a bijection of 0 .. stream_rows - 1. Rows from `stream_rows` on are of the second
    pass, which permutes the blocks anew, and so on.

    Args:
        rows: Rows in the permuted order ([n] int64), counted on from pass to pass.
        stream_rows: Rows of the stream.
        seed: Seed of the run.
        source: Source of the stream.
        version: Corpus version of the stream.

    Returns:
        Rows in the order of the table ([n] int64).
    """
    stream_pass, rows = np.divmod(rows, max(stream_rows, 1))
    block, row_in_block = np.divmod(rows, BLOCK_ROWS)
    for number in np.unique(stream_pass).tolist():
        # The first pass has the order that it had before there were others.
        salt = (number,) if number else ()
        key = _hash(seed, version, *source.encode(), *salt)
        generator = np.random.Generator(np.random.Philox(key))
        permuted_blocks = generator.permutation(stream_rows // BLOCK_ROWS)
        # A shorter last block has no entry, and stays where it is.
        moves = (stream_pass == number) & (block < len(permuted_blocks))
        block[moves] = permuted_blocks[block[moves]]
    return np.asarray(block * BLOCK_ROWS + row_in_block, dtype=np.int64)


def global_batches(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of each global batch of a range of positions.

    No position is dropped: the last batch may be shorter.

    Args:
        start: First position.
        stop: Position after the last one.
        size: Samples of a global batch.
    """
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def _hash(*values: int) -> int:
    """Mixes integers into 63 bits (splitmix64), equally on every machine."""
    mask = 0xFFFF_FFFF_FFFF_FFFF
    state = 0
    for value in values:
        state = (state ^ (value & mask)) + 0x9E37_79B9_7F4A_7C15 & mask
        state = (state ^ state >> 30) * 0xBF58_476D_1CE4_E5B9 & mask
        state = (state ^ state >> 27) * 0x94D0_49BB_1331_11EB & mask
        state ^= state >> 31
    return state >> 1
