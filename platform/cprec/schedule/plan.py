"""The plan: which sample is trained at which position, as a closed formula (docs/decisions/005-plan.md).

A plan is a sequence of eras. An era deals its portions (rows of corpus streams) out evenly: after x of N positions a portion of n rows has
given about x * n / N of them, so that no stretch is one domain, and after N exactly n. Replayed text is spread over an era in the same way, beside
them (docs/decisions/010-replay.md). Every count is a floor of a product, so any position is computed on its own, in memory that depends on the
number of portions alone, and the order depends on no worker, no clock and no restart.
Rows within a stream lie in the table in the order of a hash; the seed permutes their blocks.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cprec.schedule.wsa import WSA, Mode

BLOCK_ROWS = 1024
"""Rows that stay together when a stream is permuted: a row group of the table, so that reading stays sequential."""

MAX_ERA_SAMPLES = 3_000_000_000
"""Largest era: the floor's product must fit into 63 bits."""


@dataclass(frozen=True)
class Portion:
    """`count` rows of one stream (a source at one corpus version), from `first` on, counted in the stream's permuted order."""

    source: str
    version: int
    first: int
    count: int


@dataclass(frozen=True)
class Era:
    """Positions start..stop of the plan, dealt out of fixed portions. A new era begins where the corpus gains samples or the phase changes source.

    stop may lie before the portions' end: what they have left then goes into the next era, or is beyond the run's cap.
    replayed: portions of text that are spread over the first `spread` positions, all of their rows, between the samples of the others.
    """

    start: int
    stop: int
    portions: tuple[Portion, ...]
    seed: int
    replayed: tuple[Portion, ...] = ()
    spread: int = 0

    def __post_init__(self) -> None:
        text, most = (
            sum(p.count for p in self.replayed),
            self.spread if self.replayed else self.portion_rows,
        )
        if (
            any(p.count < 0 for p in self.all_portions)
            or self.portion_rows + text > MAX_ERA_SAMPLES
        ):
            raise ValueError(
                f"an era holds at most {MAX_ERA_SAMPLES:,} samples and no negative portion, got {self.portion_rows + text:,}"
            )
        if not (
            self.start <= self.stop <= self.start + most
            and text <= most <= self.portion_rows + text
        ):
            raise ValueError(
                f"an era of {self.portion_rows} samples and {text} of text from {self.start}, spread over {most}, cannot end at {self.stop}"
            )

    @property
    def portion_rows(self) -> int:
        """Samples of all portions but the replayed, those after `stop` included."""
        return sum(p.count for p in self.portions)

    @property
    def all_portions(self) -> tuple[Portion, ...]:
        """All portions, the replayed last: what `dealt` and `order` number."""
        return (*self.portions, *self.replayed)

    def rows_before(self, positions: np.ndarray) -> np.ndarray:
        """Rows that each portion has given before each position. positions: [n] int64 in start..stop; returns [members, n] int64.

        Portion by portion, of the positions that the earlier ones leave: c = floor((left * n + offset) / total left). Each c grows by 0 or 1
        per position, they add up to the position, and at the end c = n, because offset < total. The replayed come first, out of `spread`.
        """
        offsets = [_hash(self.seed, self.start, i) for i in range(len(self.all_portions))]
        own = len(self.portions)
        replayed = _rows_before(positions - self.start, self.replayed, self.spread, offsets[own:])
        return np.concatenate(
            [
                _rows_before(
                    positions - self.start - replayed.sum(axis=0),
                    self.portions,
                    self.portion_rows,
                    offsets[:own],
                ),
                replayed,
            ]
        )

    def replayed_rows_before(self, position: int) -> int:
        """Samples of replayed text before a position."""
        return int(
            self.rows_before(np.array([position], dtype=np.int64))[len(self.portions) :].sum()
        )

    def locate_rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples at positions start..stop: (member, row), both [stop - start] int64; rows count in the stream's permuted order.

        Raises ValueError for positions outside of the era.
        """
        if not self.start <= start <= stop <= self.stop:
            raise ValueError(
                f"positions {start}..{stop} are outside of the era {self.start}..{self.stop}"
            )
        dealt = self.rows_before(np.arange(start, stop + 1, dtype=np.int64))
        portion = (
            np.argmax(np.diff(dealt, axis=1), axis=0)
            if stop > start
            else np.zeros(0, dtype=np.int64)
        )
        first = np.array([p.first for p in self.all_portions], dtype=np.int64)
        return portion, first[portion] + dealt[portion, np.arange(stop - start)]

    def remaining_portions(self, position: int) -> tuple[Portion, ...]:
        """What the portions have left from a position on, beyond `stop` too; empty ones are left out, and the replayed: they are spread anew."""
        dealt = self.rows_before(np.array([position], dtype=np.int64))[
            : len(self.portions), 0
        ].tolist()
        rest = (
            Portion(p.source, p.version, p.first + d, p.count - d)
            for p, d in zip(self.portions, dealt, strict=True)
        )
        return tuple(p for p in rest if p.count)

    def truncate(self, stop: int) -> "Era":
        """The same era, ending earlier; what it deals before is unchanged."""
        return replace(self, stop=stop)


def _rows_before(
    positions: np.ndarray, portions: tuple[Portion, ...], total: int, offsets: list[int]
) -> np.ndarray:
    """Rows that each of some portions has given after some of `total` positions. left: [n] int64; returns [portions, n] int64."""
    dealt = np.zeros((len(portions), len(positions)), dtype=np.int64)
    for i, (portion, offset) in enumerate(zip(portions, offsets, strict=True)):
        if total == 0:
            break
        dealt[i] = (positions * portion.count + offset % total) // total
        positions = positions - dealt[i]
        total -= portion.count
    return dealt


@dataclass(frozen=True)
class Plan:
    """All that a run trains, in order: eras of domain-specific samples up to S, and one last era, of mixed samples, up to A.

    inherited: what earlier runs of the trunk had consumed when this one began, as portions from row 0 on.
    Raises ValueError when the eras do not follow each other from 0, or when the phases' ends do not fit them.
    """

    eras: tuple[Era, ...]
    wsa: WSA
    inherited: tuple[Portion, ...] = ()

    def __post_init__(self) -> None:
        ends = [0, *(era.stop for era in self.eras)]
        if len(self.eras) < 2 or any(
            era.start != end for era, end in zip(self.eras, ends, strict=False)
        ):
            raise ValueError(
                f"two or more eras must follow each other from 0, got starts {[e.start for e in self.eras]} and ends {ends[1:]}"
            )
        if (ends[-2], ends[-1]) != (self.wsa.stable_end, self.wsa.annealing_end):
            raise ValueError(
                f"S={self.wsa.stable_end} and A={self.wsa.annealing_end} must be the ends of the last two eras, {ends[1:]}"
            )

    @property
    def total_samples(self) -> int:
        """A, all samples of the run."""
        return self.wsa.annealing_end

    @property
    def domain_eras(self) -> tuple[Era, ...]:
        """The eras up to S."""
        return self.eras[:-1]

    @property
    def annealing_era(self) -> Era:
        """The era from S to A; empty in modes without one."""
        return self.eras[-1]

    def find_era(self, position: int) -> Era:
        """The era that holds a position. Raises ValueError outside 0..A-1."""
        for era in self.eras:
            if era.start <= position < era.stop:
                return era
        raise ValueError(f"position {position} is outside of the plan, 0..{self.total_samples - 1}")

    def count_by_stream(self, start: int, stop: int) -> dict[tuple[str, int], int]:
        """Samples between two positions by (source, corpus version), replayed text included."""
        counts: dict[tuple[str, int], int] = {}
        for era in self.eras:
            low, high = max(start, era.start), min(stop, era.stop)
            if low < high:
                dealt = era.rows_before(np.array([low, high], dtype=np.int64))
                for portion, given in zip(
                    era.all_portions, np.diff(dealt, axis=1)[:, 0].tolist(), strict=True
                ):
                    if given:
                        key = (portion.source, portion.version)
                        counts[key] = counts.get(key, 0) + given
        return counts

    def consumed_portions(self, samples: int) -> tuple[Portion, ...]:
        """What this run and those before it on the trunk have consumed when it has seen `samples` samples: rows from 0 on, by stream."""
        rows = {(p.source, p.version): p.count for p in self.inherited}
        for key, count in self.count_by_stream(0, samples).items():
            rows[key] = rows.get(key, 0) + count
        return tuple(
            Portion(source, version, 0, count) for (source, version), count in sorted(rows.items())
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data; `Plan.from_json` reads it back to an equal plan."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Plan":
        """The plan of `to_json`."""
        eras = tuple(
            Era(
                **{
                    **e,
                    "portions": _portions_from_json(e["portions"]),
                    "replayed": _portions_from_json(e.get("replayed", [])),
                }
            )
            for e in values["eras"]
        )
        return cls(
            eras,
            WSA(**{**values["wsa"], "mode": Mode(values["wsa"]["mode"])}),
            _portions_from_json(values["inherited"]),
        )


def _portions_from_json(values: list[dict[str, Any]]) -> tuple[Portion, ...]:
    return tuple(Portion(**p) for p in values)


def permute_rows(
    rows: np.ndarray, stream_rows: int, seed: int, source: str, version: int
) -> np.ndarray:
    """Rows of the table for rows of a stream's permuted order: whole blocks change places, a shorter last block stays last.

    rows: [n] int64 in 0..total; total: rows of the stream. A bijection of 0..total for every seed.
    """
    blocks = np.random.Generator(
        np.random.Philox(_hash(seed, version, *source.encode()))
    ).permutation(stream_rows // BLOCK_ROWS)
    block, within = np.divmod(rows, BLOCK_ROWS)
    whole = block < len(blocks)
    moved = (
        np.where(whole, blocks[np.minimum(block, len(blocks) - 1)], block) if len(blocks) else block
    )
    return np.asarray(moved * BLOCK_ROWS + within, dtype=np.int64)


def global_batches(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Global batches of the positions start..stop: `size` samples each, the last one shorter. Nothing is dropped."""
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def _hash(*values: int) -> int:
    """A 63-bit mix of integers (splitmix64), equal on every machine."""
    state = 0
    for value in values:
        state = (
            state ^ (value & 0xFFFF_FFFF_FFFF_FFFF)
        ) + 0x9E37_79B9_7F4A_7C15 & 0xFFFF_FFFF_FFFF_FFFF
        state = (state ^ state >> 30) * 0xBF58_476D_1CE4_E5B9 & 0xFFFF_FFFF_FFFF_FFFF
        state = (state ^ state >> 27) * 0x94D0_49BB_1331_11EB & 0xFFFF_FFFF_FFFF_FFFF
        state ^= state >> 31
    return state >> 1
