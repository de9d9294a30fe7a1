"""Ranks many users on Ray Data, block by block, so that a killed job loses a block at most.

    <folder>/rankings/part-00000.parquet    the users of a block, written whole
    <folder>/quarantine.jsonl               rows that cannot be ranked, one a line
    <folder>/summary.json                   written last: inputs, model, counts

The folder is named by a digest of everything that the rankings depend on. So a job that starts
again finds the blocks of an earlier start, and no block of other inputs.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext

from cluster import storage
from cluster.console import print_line
from cluster.errors import CprecError, DataError
from corpus.store.delta import open_parquet
from cprec.config.recipe import Recipe
from cprec.downstream.domain import Domain
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.evaluation.candidate_rows import Query
from cprec.ranking.batch_input import Rejected
from cprec.ranking.items import ItemLookup
from cprec.ranking.ranker import MIN_CANDIDATES, Ranker
from cprec.stream.row_encoder import RowEncoder

RANKINGS = "rankings"
"""Folder of the blocks."""
BLOCK = "block"
"""Column that numbers the block of a row, from 0."""
REJECTED = b"rejected"
"""Key of a block's metadata that has its rejected rows."""

RANKING_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        # Item ids, best first; null where the input has titles.
        ("items", pa.list_(pa.string())),
        ("titles", pa.list_(pa.string())),
        # Log-likelihood of each item's title.
        ("scores", pa.list_(pa.float64())),
        # Softmax of the scores over all candidates of the user, not only those shown.
        ("probabilities", pa.list_(pa.float64())),
        ("model", pa.string()),
    ]
)
"""Columns of a block: one row per user."""


@dataclass(frozen=True)
class BlockRanking:
    """How blocks are ranked, as data that is sent to every worker.

    Attributes:
        recipe: Precision, longest prompt, `recommend.k`, and requests of one pass.
        model: The model.
        items: Items of the domain; None: rows have titles.
        row_encoder: Encoder of the items; None if the model is hybrid, or rows have titles.
        uri: Folder of the batch.
        source: URI of the input, which the record of a rejected row names.
    """

    recipe: Recipe
    model: EvaluatedModel
    items: ItemLookup | None
    row_encoder: RowEncoder | None
    uri: str
    source: str

    def load(self) -> Ranker:
        """Loads the model."""
        domain: Domain | None = None if self.items is None else self.items.domain
        encoder = None if self.row_encoder is None else self.row_encoder.load_prompt_encoder()
        return Ranker.load(self.recipe, self.model, print_line, domain, encoder)

    def rank(self, ranker: Ranker, rows: pa.Table) -> pa.Table:
        """Ranks the candidates of some users.

        Args:
            ranker: The loaded model.
            rows: Columns user_id, history and candidates.

        Returns:
            Their rankings (RANKING_SCHEMA). Users who cannot be ranked are in the table's metadata
            instead, each with the reason.
        """
        encode = ranker.encode_titles if self.items is None else ranker.encode_items
        ranked: list[tuple[str, list[int] | list[str], Query]] = []
        rejected = []
        for row in rows.select(["user_id", "history", "candidates"]).to_pylist():
            user, candidates = row["user_id"], row["candidates"]
            try:
                ranked.append((user, candidates, encode(row["history"], candidates)))
            except DataError as error:
                few = len(candidates) < MIN_CANDIDATES
                reason = "too_few_candidates" if few else "too_long"
                rejected.append(Rejected(self.source, 0, user, reason, str(error)))
        rankings = ranker.rank([query for _, _, query in ranked])
        k = self.recipe.recommend.k
        columns: dict[str, list[object]] = {name: [] for name in RANKING_SCHEMA.names}
        for (user, candidates, _), ranking in zip(ranked, rankings, strict=True):
            best = [candidates[i] for i in ranking.order[:k].tolist()]
            columns["user_id"].append(user)
            columns["items"].append(None if self.items is None else self.items.ids(best))
            columns["titles"].append(best if self.items is None else self.items.titles(best))
            columns["scores"].append(ranking.scores[:k])
            columns["probabilities"].append(ranking.probabilities[:k])
            columns["model"].append(self.model.label)
        metadata = {REJECTED: json.dumps([asdict(row) for row in rejected]).encode()}
        return pa.table(columns, schema=RANKING_SCHEMA).replace_schema_metadata(metadata)


class _BlockWorker:
    """An actor of Ray Data: it holds the model, and writes each block that it ranked."""

    def __init__(self, refs: Sequence["ray.ObjectRef[BlockRanking]"]) -> None:
        self._ranking = ray.get(refs[0])
        self._ranker = self._ranking.load()

    def __call__(self, rows: pa.Table) -> pa.Table:
        number = rows[BLOCK][0].as_py()
        write_block(self._ranking.uri, number, self._ranking.rank(self._ranker, rows))
        return pa.table({BLOCK: [number], "users": [len(rows)]})


def rank_blocks(
    ranking: BlockRanking, rows: pa.Table, numbers: Sequence[int], workers: int
) -> Iterator[int]:
    """Ranks and writes blocks, inside a Ray session.

    Args:
        ranking: How they are ranked.
        rows: All rows, with candidates; those of a block follow each other.
        numbers: Numbers of the blocks to rank.
        workers: Actors that hold the model.

    Yields:
        The number of users of each block that was written.

    Raises:
        CprecError: A worker raised it.
    """
    size = ranking.recipe.recommend.block_users
    blocks = [
        block.append_column(BLOCK, pa.array([number] * len(block), pa.int64()))
        for number in numbers
        if len(block := rows.slice(number * size, size))
    ]
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    train = ranking.recipe.train
    written = ray.data.from_arrow(blocks).map_batches(
        _BlockWorker,
        # A ref inside a list: an actor that is restarted gets it as it is.
        fn_constructor_args=([ray.put(ranking)],),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(workers, len(blocks))),
        num_cpus=train.cpus_per_worker,
        num_gpus=train.gpus_per_worker,
    )
    try:
        for row in written.iter_rows():
            yield int(row["users"])
    except ray.exceptions.RayError as error:
        raise find_cause(error) or error from None


def find_cause(error: BaseException | None) -> CprecError | None:
    """Returns the error of this project that an error of Ray was raised for; None without one."""
    while error is not None:
        if isinstance(error, CprecError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None


def block_uri(uri: str, number: int) -> str:
    """Returns the file of a block."""
    return storage.join(uri, RANKINGS, f"part-{number:05d}.parquet")


def write_block(uri: str, number: int, rankings: pa.Table) -> None:
    """Writes a block atomically."""
    sink = pa.BufferOutputStream()
    pq.write_table(rankings, sink, write_page_checksum=True)
    storage.write_bytes(block_uri(uri, number), sink.getvalue().to_pybytes())


def list_missing(uri: str, num_blocks: int) -> list[int]:
    """Returns the numbers of the blocks that are not written yet."""
    there = set(storage.list_names(storage.join(uri, RANKINGS)))
    return [
        number
        for number in range(num_blocks)
        if block_uri(uri, number).rsplit("/", 1)[-1] not in there
    ]


def read_counts(uri: str, num_blocks: int) -> tuple[int, list[Rejected]]:
    """Returns the number of users in all blocks, and the rows that their workers rejected."""
    users, rejected = 0, []
    for number in range(num_blocks):
        file = open_parquet(block_uri(uri, number))
        users += file.metadata.num_rows
        rejected += [
            Rejected(**row) for row in json.loads(file.schema_arrow.metadata[REJECTED].decode())
        ]
    return users, rejected
