"""predictions.parquet: what a model answered to each sample. Every metric can be recomputed from it (contract "Evaluation")."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cprec.evaluate.metrics import Ranks, ranks

SCHEMA = pa.schema(
    [
        ("sample_id", pa.int64()),  # the bits of a uint64, as in the corpus
        ("user_id", pa.string()),
        ("history_length", pa.int32()),
        ("target", pa.int8()),  # position of the true item among the candidates
        ("rank", pa.float64()),  # of the true item, from 1; the mean where scores tie
        ("scores", pa.list_(pa.float64())),  # in the order of the candidates
        ("ranking", pa.list_(pa.int64())),  # item indices, best first; ties in the order of the candidates
        ("text", pa.string()),  # what was generated; null where candidates were scored
    ]
)


def of_scores(samples: pa.Table, scores: NDArray[np.float64]) -> pa.Table:
    """The predictions of a model that scored. samples: rows of the corpus; scores: [n, candidates]. Raises PlatformFault for NaN."""
    target = samples["target"].to_numpy().astype(np.int64)
    expected = ranks(scores, target).expected
    candidates = _matrix(samples["candidates"], len(samples))
    ranking = np.take_along_axis(candidates, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    return pa.table(
        {
            "sample_id": samples["sample_id"],
            "user_id": samples["user_id"],
            "history_length": history_length(samples),
            "target": samples["target"],
            "rank": expected,
            "scores": list(scores),
            "ranking": list(ranking),
            "text": pa.nulls(len(samples), pa.string()),
        },
        schema=SCHEMA,
    )


def ranks_of(predictions: pa.Table) -> Ranks:
    """The ranks that the predictions hold."""
    return ranks(_matrix(predictions["scores"], len(predictions)), predictions["target"].to_numpy())


def history_length(samples: pa.Table) -> NDArray[np.int32]:
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


def _matrix(column: pa.ChunkedArray, rows: int) -> NDArray[np.float64]:
    return np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(rows, -1))
