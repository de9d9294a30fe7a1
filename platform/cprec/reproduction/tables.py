"""The cells of each table and figure, from the kept results of steps."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.errors import PlatformFault
from cluster.storage import read_bytes
from cprec.evaluation import predictions
from cprec.evaluation.metrics import HISTORY_SLICES, discounted_gains, hits
from cprec.reproduction import paper
from cprec.reproduction.cells import Cell, Contributions, compare, correct, describe
from cprec.reproduction.models import WSA, Artefact, Content, Measure, Model
from cprec.reproduction.results import (
    CorpusContent,
    Cost,
    PretrainContent,
    ScoreContent,
    StepResult,
    TuneContent,
)
from cprec.reproduction.steps import (
    Kind,
    generated_name,
    pretrained_name,
    scored_name,
    tuned_name,
)


@dataclass
class Answers:
    """What models answered, read once each.

    Attributes:
        results: Results of steps by name.
        read: Reads the predictions at a URI.
    """

    results: Mapping[str, StepResult]
    read: Callable[[str], pa.Table]
    _seeds: dict[str, list[pa.Table]] = field(default_factory=dict)

    def seeds(self, step: str) -> list[pa.Table]:
        """Returns the predictions of each seed of a step; none where it is not computed."""
        if step not in self._seeds:
            result = self.results.get(step)
            content = result.content if result else None
            uris = content.predictions if isinstance(content, ScoreContent) else []
            self._seeds[step] = [self.read(uri) for uri in uris]
        return self._seeds[step]

    def contributions(
        self, model: Model, domain: str, measure: Measure
    ) -> tuple[NDArray[np.int64], Contributions] | None:
        """Returns a model's sample ids [users] and contributions; None where there are none."""
        needs_answers = measure.is_valid_ratio and not model.writes_rankings
        step = (generated_name if needs_answers else scored_name)(model, domain)
        tables = self.seeds(step)
        if not tables:
            return None
        values = np.stack([_contribution(table, measure) for table in tables])
        users = np.ones(len(tables[0]), dtype=bool)
        if measure.users is not None:
            start, end = HISTORY_SLICES[measure.users]
            lengths = tables[0]["history_length"].to_numpy()
            users = (lengths >= start) & (lengths < end)
        return tables[0]["sample_id"].to_numpy()[users], values[:, users]


def read_predictions(uri: str) -> pa.Table:
    """Reads a predictions.parquet."""
    return predictions.from_bytes(read_bytes(uri))


def artefact_cells(artefact: Artefact, answers: Answers) -> list[Cell]:
    """Returns the cells of a table or figure, as far as its steps are computed."""
    content = answers.results.get(Kind.CORPUS)
    if content is None or not isinstance(content.content, CorpusContent):
        return []
    corpus = content.content
    match artefact.content:
        case Content.STATISTICS:
            return list(_statistics_cells(artefact, corpus))
        case Content.COST:
            return list(_cost_cells(artefact, corpus, answers.results))
        case Content.SCORES:
            return correct(list(_score_cells(artefact, corpus, answers)))


def order_cells(artefact: Artefact, answers: Answers) -> list[Cell]:
    """Returns each row of the paper's order against the next one, in the first column.

    Of rows that are not both computed there is none.
    """
    content = answers.results.get(Kind.CORPUS)
    if content is None or not isinstance(content.content, CorpusContent):
        return []
    measure = artefact.measures[0]
    cells = []
    for domain in content.content.held_out:
        for model, lower in itertools.pairwise(artefact.order):
            scored = answers.contributions(model, domain, measure)
            against = answers.contributions(lower, domain, measure)
            if scored is None or against is None:
                continue
            _require_same_users(artefact, domain, scored[0], against[0])
            cell = Cell(artefact.name, domain, model.name, model.label, measure.name, None)
            cell = describe(cell, scored[1])
            cells.append(compare(cell, scored[1], lower.label, against[1]))
    return correct(cells)


def _contribution(table: pa.Table, measure: Measure) -> NDArray[np.float64]:
    """Returns what each user contributes to a measure [users]."""
    if measure.is_valid_ratio:
        return np.asarray(table["named_llara"].is_valid().to_numpy(), dtype=np.float64)
    ranks = predictions.to_ranks(table)
    return (discounted_gains if measure.is_ndcg else hits)(ranks, measure.k)


def _score_cells(artefact: Artefact, corpus: CorpusContent, answers: Answers) -> Iterator[Cell]:
    """Yields the cells of scores, with uncorrected tests."""
    for domain, counts in corpus.held_out.items():
        dataset = paper.find_dataset((counts.users, counts.items, counts.interactions))
        for model in artefact.models:
            for measure in artefact.measures:
                scored = answers.contributions(model, domain, measure)
                if scored is None:
                    continue
                cell = Cell(
                    artefact.name,
                    domain,
                    model.name,
                    model.label,
                    measure.name,
                    None,
                    paper=paper.find_score(artefact.name, dataset, model.paper, measure.name),
                )
                cell = describe(cell, scored[1])
                reference = artefact.reference
                if reference is not None and reference != model:
                    against = answers.contributions(reference, domain, measure)
                    if against is not None:
                        if model.writes_rankings:
                            # It has answered for all users, and the others for the first of them.
                            scored = _select_users(*scored, against[0])
                        _require_same_users(artefact, domain, scored[0], against[0])
                        cell = compare(cell, scored[1], reference.name, against[1])
                yield cell


def _select_users(
    ids: NDArray[np.int64], values: Contributions, wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Contributions]:
    """Returns ids and contributions of the users with a wanted sample id."""
    users = np.isin(ids, wanted)
    return ids[users], values[:, users]


def _require_same_users(
    artefact: Artefact, domain: str, first: NDArray[np.int64], second: NDArray[np.int64]
) -> None:
    """Raises PlatformFault if two models were scored on different samples."""
    if not np.array_equal(first, second):
        raise PlatformFault(f"{artefact.name}, {domain}: models were scored on different samples")


def _statistics_cells(artefact: Artefact, corpus: CorpusContent) -> Iterator[Cell]:
    """Yields the cells of Table 2."""
    for domain, counts in corpus.domains.items():
        dataset = paper.find_dataset((counts.users, counts.items, counts.interactions))
        known = paper.DATASETS.get(dataset or "")
        label = "held out" if counts.held_out else "pre-training"
        values = {
            "Users": counts.users,
            "Items": counts.items,
            "Interactions": counts.interactions,
            "Sparsity": counts.sparsity,
        }
        for column, (measure, value) in enumerate(values.items()):
            number = float(known[column]) if known and column < len(known) else None
            yield Cell(artefact.name, domain, "", label, measure, float(value), paper=number)


def _cost_cells(
    artefact: Artefact, corpus: CorpusContent, results: Mapping[str, StepResult]
) -> Iterator[Cell]:
    """Yields the cells of Table 7: pre-training, then each fine-tuning, per epoch."""
    pretrained = results.get(pretrained_name(WSA))
    if pretrained is not None and isinstance(pretrained.content, PretrainContent):
        cell = Cell(artefact.name, "all", WSA.name, "Pre-training", "", None)
        yield from _cost(cell, [pretrained.content.cost])
    for domain, counts in corpus.domains.items():
        for model in artefact.models if counts.held_out else ():
            tuned = results.get(tuned_name(model, domain))
            if tuned is None or not isinstance(tuned.content, TuneContent):
                continue
            costs = [seed.cost for seed in tuned.content.seeds if seed.cost is not None]
            cell = Cell(artefact.name, domain, model.name, model.label, "", None)
            yield from _cost(cell, costs)


def _cost(cell: Cell, costs: list[Cost]) -> Iterator[Cell]:
    """Yields a row of costs per epoch; means over seeds, and the peak of their memory."""
    if not costs:
        return
    epochs = sum(cost.epochs for cost in costs)
    seconds = sum(cost.seconds for cost in costs)
    values = {
        "Minutes": seconds / 60 / epochs,
        "Tokens": sum(cost.tokens for cost in costs) / epochs,
        "Tokens/s": sum(cost.tokens for cost in costs) / max(seconds, 1e-9),
        "Memory (GB)": max(cost.memory_gb for cost in costs),
    }
    for measure, value in values.items():
        yield Cell(cell.artefact, cell.domain, cell.model, cell.label, measure, value)
