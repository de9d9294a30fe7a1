"""Models side by side on the samples of one domain: the content of a stored comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cprec.evaluate.significance import PairedTest


@dataclass(frozen=True)
class ComparisonRow:
    """One model: its metrics, and how it differs from the reference.

    A model with several seeds is one row. Its metrics are the means over its seeds.

    Attributes:
        name: Name under which the model was asked for.
        model: What that is, such as `version-3`; for several seeds, how many there are.
        metrics: Content of metrics.json.
        against: Paired test of HR@1 against the reference over users, on the mean over seeds of
            each sample. None for the reference itself.
        permutation_p: p of a permutation test of the same pairs.
        over_seeds: Paired test of HR@1 over seeds (paper Sec. 5.1.4); None without several.
        holm_p: p of `against`, corrected for all domains on which this run compared the two models.
        perplexity: Perplexity of `evaluate.text`, the mean over seeds. None without a text, and
            for a baseline.
    """

    name: str
    model: str
    metrics: Mapping[str, Any]
    against: PairedTest | None
    permutation_p: float | None = None
    over_seeds: PairedTest | None = None
    holm_p: float | None = None
    perplexity: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Models compared on one split of a domain.

    Attributes:
        name: Name of the comparison: the models, as they were asked for, and the mode.
        time: When it was made (Unix seconds); 0 where an earlier release made it.
        domain: Name of the domain.
        split: Split that was scored.
        mode: How the models answered: `score`, `generate` or `constrained`.
        chance: HR@1 of a random choice among the candidates.
        rows: One row per model, the reference first.
    """

    name: str
    time: float
    domain: str
    split: str
    mode: str
    chance: float
    rows: Sequence[ComparisonRow]
