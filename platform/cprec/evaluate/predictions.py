"""predictions.parquet: what a model answered to each sample. Every metric can be recomputed from it (contract "Evaluation")."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cprec.evaluate.answer_matching import match_exact, match_llara
from cprec.evaluate.metrics import GeneratedAnswers, Ranks, compute_metrics, compute_ranks

UNNAMED_RANK = 1 << 20
"""Candidates before a true item that was not named: more than any list has."""

SCHEMA = pa.schema(
    [
        ("sample_id", pa.int64()),  # the bits of a uint64, as in the corpus
        ("user_id", pa.string()),
        ("history_length", pa.int32()),
        ("target", pa.int8()),  # position of the true item among the candidates
        ("rank", pa.float64()),  # of the true item, from 1; the mean where scores tie
        ("scores", pa.list_(pa.float64())),  # in the order of the candidates
        (
            "ranking",
            pa.list_(pa.int64()),
        ),  # item indices, best first; ties in the order of the candidates
        ("text", pa.string()),  # what was generated first; null where candidates were scored
        (
            "texts",
            pa.list_(pa.string()),
        ),  # what was generated in turn, each time without the item named before; null likewise
        (
            "named_exact",
            pa.int8(),
        ),  # position of the candidate that `text` names, by each rule of cprec.evaluate.answer_matching; null for none
        ("named_llara", pa.int8()),
    ]
)


def from_scores(samples: pa.Table, scores: NDArray[np.float64]) -> pa.Table:
    """The predictions of a model that scored. samples: rows of the corpus; scores: [n, candidates]. Raises PlatformFault for NaN."""
    target = samples["target"].to_numpy().astype(np.int64)
    expected = compute_ranks(scores, target).expected_rank
    candidates = _to_matrix(samples["candidates"], len(samples))
    ranking = np.take_along_axis(candidates, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return pa.table(
        {
            "sample_id": samples["sample_id"],
            "user_id": samples["user_id"],
            "history_length": history_lengths(samples),
            "target": samples["target"],
            "rank": expected,
            "scores": list(scores),
            "ranking": list(ranking),
            **{
                name: pa.nulls(len(samples), SCHEMA.field(name).type)
                for name in ("text", "texts", "named_exact", "named_llara")
            },
        },
        schema=SCHEMA,
    )


def from_texts(
    samples: pa.Table, texts: Sequence[Sequence[str]], titles: Sequence[str]
) -> pa.Table:
    """The predictions of a model that generated. texts: [n] answers in turn (cprec.evaluate.generation); titles: by item index.

    The ranking holds the items named, in turn; the rank of a true item that is not among them is null.
    """
    candidates, target = samples["candidates"].to_pylist(), samples["target"].to_pylist()
    named = [
        [match_exact(text, [titles[i] for i in of_row]) for text in said]
        for said, of_row in zip(texts, candidates, strict=True)
    ]
    ranking = [
        [of_row[place] for place in places if place is not None]
        for places, of_row in zip(named, candidates, strict=True)
    ]
    true = [of_row[place] for of_row, place in zip(candidates, target, strict=True)]
    return pa.table(
        {
            "sample_id": samples["sample_id"],
            "user_id": samples["user_id"],
            "history_length": history_lengths(samples),
            "target": samples["target"],
            "rank": [
                float(row.index(item) + 1) if item in row else None
                for row, item in zip(ranking, true, strict=True)
            ],
            "scores": pa.nulls(len(samples), SCHEMA.field("scores").type),
            "ranking": ranking,
            "text": [said[0] for said in texts],
            "texts": [list(said) for said in texts],
            "named_exact": [places[0] for places in named],
            "named_llara": [
                match_llara(said[0], [titles[i] for i in of_row])
                for said, of_row in zip(texts, candidates, strict=True)
            ],
        },
        schema=SCHEMA,
    )


def to_metrics(predictions: pa.Table, model: str, domain: str, mode: str) -> dict[str, Any]:
    """The object of metrics.json, from nothing but the predictions."""
    generated = None
    if mode != "score":
        target = predictions["target"].to_numpy()
        rules = {rule: predictions[f"named_{rule}"] for rule in ("exact", "llara")}
        correct, valid = (
            (rules["llara"].fill_null(-1).to_numpy() == target),
            rules["llara"].is_valid().to_numpy(),
        )
        generated = GeneratedAnswers(
            {rule: named.is_valid().to_numpy() for rule, named in rules.items()}, correct & valid
        )
    return compute_metrics(
        model,
        domain,
        to_ranks(predictions),
        predictions["history_length"].to_numpy(),
        generated,
        mode,
    )


def to_ranks(predictions: pa.Table) -> Ranks:
    """The ranks that the predictions hold. A true item that was not named stands behind all candidates."""
    if predictions["scores"].null_count:
        rank = predictions["rank"].fill_null(np.inf).to_numpy()
        better = np.where(np.isfinite(rank), rank - 1, UNNAMED_RANK).astype(np.int64)
        return Ranks(better, np.ones_like(better))
    return compute_ranks(
        _to_matrix(predictions["scores"], len(predictions)), predictions["target"].to_numpy()
    )


def history_lengths(samples: pa.Table) -> NDArray[np.int32]:
    """[n] items in each sample's history."""
    return np.asarray([len(history) for history in samples["history"].to_pylist()], dtype=np.int32)


def to_bytes(predictions: pa.Table) -> bytes:
    """As a parquet file, with page checksums."""
    file = io.BytesIO()
    pq.write_table(predictions, file, write_page_checksum=True)
    return file.getvalue()


def from_bytes(content: bytes) -> pa.Table:
    """The table of `to_bytes`; the checksums are verified."""
    return pq.read_table(io.BytesIO(content), page_checksum_verification=True)


def _to_matrix(column: pa.ChunkedArray, rows: int) -> NDArray[np.float64]:
    return np.asarray(
        column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(rows, -1)
    )
