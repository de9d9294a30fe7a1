"""How often a run reads the samples of each source (docs/decisions/040-passes.md). Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True)
class Passes:
    """Epochs of a run, and the passes over each source in one epoch.

    Attributes:
        epochs: Epochs.
        weights: Passes in one epoch, by source; a source that is not named has one.
    """

    epochs: int = 1
    weights: Mapping[str, float] = field(default_factory=dict)

    def total_rows(self, source: str, stream_rows: int) -> int:
        """Returns how many rows of a stream are read in all epochs together.

        Args:
            source: Source of the stream.
            stream_rows: Rows of the stream.
        """
        # The weight as it is written, such as 1/10 for 0.1, and not the nearest binary number.
        return round(Fraction(str(self.weights.get(source, 1))) * self.epochs * stream_rows)


ONE_PASS = Passes()
"""Every sample is read once."""
