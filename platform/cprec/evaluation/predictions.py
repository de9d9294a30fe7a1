"""Tables of predictions, as stored in predictions.parquet (docs/reference/file-formats.md).

A row holds what a model answered to one sample. Every metric can be computed from the table alone.
"""

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cprec.evaluation.answer_matching import Answer
from cprec.evaluation.metrics import (
    GeneratedAnswers,
    Metrics,
    Ranks,
    compute_metrics,
    compute_ranks,
    length_correlations,
)

UNNAMED_RANK = 1 << 20
"""Number of candidates ranked before a true item that was not named; more than any list has."""

SCHEMA = pa.schema(
    [
        # The bits of a uint64, as in the corpus.
        ("sample_id", pa.int64()),
        ("user_id", pa.string()),
        ("history_length", pa.int32()),
        # Position of the true item among the candidates.
        ("target", pa.int8()),
        # Rank of the true item, from 1; the mean rank where scores tie.
        ("rank", pa.float64()),
        # In the order of the candidates.
        ("scores", pa.list_(pa.float64())),
        # Item indices, best first; ties in the order of the candidates.
        ("ranking", pa.list_(pa.int64())),
        # The first generated answer; null where candidates were scored.
        ("text", pa.string()),
        # All generated answers, each to the question without the items named before; null likewise.
        ("texts", pa.list_(pa.string())),
        # Position of the candidate that the first answer names, by each rule of
        # cprec.evaluation.answer_matching; null where it names none.
        ("named_exact", pa.int8()),
        ("named_llara", pa.int8()),
        # Rank correlation of the candidates' scores and the lengths of their titles; null where
        # there are no scores, or they or the lengths are all equal.
        ("length_correlation", pa.float64()),
    ]
)
"""Columns of a table of predictions."""


def from_scores(samples: pa.Table, scores: NDArray[np.float64], titles: Sequence[str]) -> pa.Table:
    """Builds the predictions of a model that scored candidates.

    Args:
        samples: Samples of the corpus.
        scores: Scores of their candidates [n, candidates]; higher is better.
        titles: Titles by item index.

    Raises:
        PlatformFault: A score is NaN.
    """
    targets = samples["target"].to_numpy().astype(np.int64)
    expected_ranks = compute_ranks(scores, targets).expected_rank
    candidates = _to_matrix(samples["candidates"], len(samples))
    lengths = np.array([[len(titles[i]) for i in items] for items in candidates], dtype=np.int64)
    correlations = length_correlations(scores, lengths.reshape(scores.shape))
    ranking = np.take_along_axis(candidates, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return pa.table(
        {
            "sample_id": samples["sample_id"],
            "user_id": samples["user_id"],
            "history_length": history_lengths(samples),
            "target": samples["target"],
            "rank": expected_ranks,
            "scores": list(scores),
            "ranking": list(ranking),
            **{
                name: pa.nulls(len(samples), SCHEMA.field(name).type)
                for name in ("text", "texts", "named_exact", "named_llara")
            },
            "length_correlation": pa.array(correlations, from_pandas=True),
        },
        schema=SCHEMA,
    )


def from_answers(samples: pa.Table, answers: Sequence[Sequence[Answer]]) -> pa.Table:
    """Builds the predictions of a model that generated answers.

    The ranking holds the items that were named, in the order of the answers. A true item that was
    not named has a null rank.

    Args:
        samples: Samples of the corpus.
        answers: Answers to each sample in order [n] (cprec.evaluation.generation).
    """
    candidates = samples["candidates"].to_pylist()
    ranking = [[answer.exact for answer in given if answer.exact is not None] for given in answers]
    targets = samples["target"].to_pylist()
    true_items = [items[target] for items, target in zip(candidates, targets, strict=True)]
    first = [given[0] for given in answers]

    def positions(named: Sequence[int | None]) -> list[int | None]:
        return [
            None if item is None else items.index(item)
            for item, items in zip(named, candidates, strict=True)
        ]

    return pa.table(
        {
            "sample_id": samples["sample_id"],
            "user_id": samples["user_id"],
            "history_length": history_lengths(samples),
            "target": samples["target"],
            "rank": [
                float(ranked.index(item) + 1) if item in ranked else None
                for ranked, item in zip(ranking, true_items, strict=True)
            ],
            "scores": pa.nulls(len(samples), SCHEMA.field("scores").type),
            "ranking": ranking,
            "text": [answer.text for answer in first],
            "texts": [[answer.text for answer in given] for given in answers],
            "named_exact": positions([answer.exact for answer in first]),
            "named_llara": positions([answer.llara for answer in first]),
            "length_correlation": pa.nulls(len(samples), pa.float64()),
        },
        schema=SCHEMA,
    )


def to_metrics(predictions: pa.Table, model: str, domain: str, mode: str) -> Metrics:
    """Computes the contents of metrics.json from predictions alone.

    Args:
        predictions: Table of predictions.
        model: Label of the model.
        domain: Domain of the samples.
        mode: How the model was evaluated: `score`, `generate` or `constrained`.
    """
    generated = None
    if mode != "score":
        targets = predictions["target"].to_numpy()
        named_by_rule = {rule: predictions[f"named_{rule}"] for rule in ("exact", "llara")}
        valid = {rule: named.is_valid().to_numpy() for rule, named in named_by_rule.items()}
        names_target = named_by_rule["llara"].fill_null(-1).to_numpy() == targets
        generated = GeneratedAnswers(valid, names_target & valid["llara"])
    # Predictions of an earlier release have no such column.
    has_correlation = "length_correlation" in predictions.column_names
    return {
        **compute_metrics(
            model,
            domain,
            to_ranks(predictions),
            predictions["history_length"].to_numpy(),
            generated,
            mode,
        ),
        "length_correlation": pc.mean(predictions["length_correlation"]).as_py()
        if has_correlation
        else None,
    }


def to_ranks(predictions: pa.Table) -> Ranks:
    """Returns the ranks of the true items; one that was not named ranks after all candidates."""
    if predictions["scores"].null_count:
        ranks = predictions["rank"].fill_null(np.inf).to_numpy()
        better_counts = np.where(np.isfinite(ranks), ranks - 1, UNNAMED_RANK).astype(np.int64)
        return Ranks(better_counts, np.ones_like(better_counts))
    return compute_ranks(
        _to_matrix(predictions["scores"], len(predictions)), predictions["target"].to_numpy()
    )


def history_lengths(samples: pa.Table) -> NDArray[np.int32]:
    """Returns the number of items in each sample's history [n]."""
    return np.asarray([len(history) for history in samples["history"].to_pylist()], dtype=np.int32)


def to_bytes(predictions: pa.Table) -> bytes:
    """Serialises predictions as a parquet file with page checksums."""
    file = io.BytesIO()
    pq.write_table(predictions, file, write_page_checksum=True)
    return file.getvalue()


def from_bytes(content: bytes) -> pa.Table:
    """Reads predictions that `to_bytes` serialised, and verifies the page checksums."""
    return pq.read_table(io.BytesIO(content), page_checksum_verification=True)


def _to_matrix(column: pa.ChunkedArray, rows: int) -> NDArray[np.float64]:
    """Converts a column of equally long lists to a matrix [rows, length]."""
    return np.asarray(
        column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(rows, -1)
    )
