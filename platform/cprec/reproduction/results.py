"""The results of steps, as they are kept on storage.

    <storage>/reproduction/steps/<name>-<digest>/result.json    written last

A step without it is computed again; what its job has kept meanwhile is not.
"""

from typing import Any, Literal

from pydantic import Field

from cluster.storage import absolute_uri, join, write_text
from cprec.config.recipe import Recipe
from cprec.reproduction.graph import Graph, Step
from cprec.runs.record_files import read_record
from cprec.runs.records import Record

REPRODUCTION_FOLDER = "reproduction"
"""Folder of a storage that holds everything that a reproduction leaves."""
STEPS_FOLDER = "steps"
RUNS_FOLDER = "runs"
RESULT_FILE = "result.json"


class DomainCounts(Record):
    """What the corpus has of one domain."""

    users: int = Field(description="users after k-core")
    items: int = Field(description="items")
    interactions: int = Field(description="interactions, before the split")
    sparsity: float = Field(description="1 - interactions / (users x items)")
    held_out: bool = Field(description="whether the domain is held out of pre-training")


class CorpusContent(Record):
    """The corpus of all later steps."""

    kind: Literal["corpus"] = Field("corpus", description="what the result is of")
    uri: str = Field(description="where it is")
    fingerprint: str = Field(description="what identifies it")
    version: int = Field(description="its version, which all steps read")
    domains: dict[str, DomainCounts] = Field(description="its domains")
    mixed_samples: int = Field(description="its mixed samples")

    @property
    def held_out(self) -> dict[str, DomainCounts]:
        """The domains that models are scored on."""
        return {name: counts for name, counts in self.domains.items() if counts.held_out}


class Cost(Record):
    """What training costs."""

    samples: int = Field(description="samples that were trained")
    tokens: int = Field(description="tokens of their prompts and answers")
    seconds: float = Field(description="time in optimizer steps and waiting for data (s)")
    epochs: int = Field(description="epochs that these are; 1 for pre-training")
    memory_gb: float = Field(description="peak memory of the first worker (GB)")


class PretrainContent(Record):
    """A finished pre-training."""

    kind: Literal["pretrain"] = Field("pretrain", description="what the result is of")
    run: str = Field(description="folder of the run")
    checkpoint: str = Field(description="its last checkpoint")
    cost: Cost = Field(description="what it cost")


class TunedSeed(Record):
    """One seed of the best learning rate."""

    seed: int = Field(description="the seed")
    checkpoint: str = Field(description="checkpoint of its best epoch on validation")
    epoch: int = Field(description="that epoch, from 1")
    hr1: float = Field(description="its HR@1 on validation")
    cost: Cost | None = Field(None, description="what its epochs cost; none where nobody noted it")


class TuneContent(Record):
    """A finished search of the learning rate."""

    kind: Literal["tune"] = Field("tune", description="what the result is of")
    search: str = Field(description="folder of the search")
    lr: float = Field(description="best learning rate on validation")
    hr1_by_lr: dict[str, float] = Field(
        description="HR@1 on validation of each learning rate, the mean of its seeds"
    )
    seeds: list[TunedSeed] = Field(description="its seeds")


class ScoreContent(Record):
    """The predictions of one model on the test split of one domain."""

    kind: Literal["score"] = Field("score", description="what the result is of")
    predictions: list[str] = Field(description="predictions.parquet of each seed")
    generated: bool = Field(description="whether answers were generated, or candidates scored")


StepContent = CorpusContent | PretrainContent | TuneContent | ScoreContent
"""What a step computes."""


class StepResult(Record):
    """The result of a step: the content of result.json."""

    name: str = Field(description="name of the step")
    kind: str = Field(description="what it computed")
    digest: str = Field(description="digest of everything that the result depends on")
    inputs: dict[str, Any] = Field(description="what that is, besides the parents")
    parents: dict[str, str] = Field(description="digests of the steps before it, by name")
    began: float = Field(description="when its last start was (Unix seconds)")
    seconds: float = Field(description="time from its last start to its end (s)")
    content: StepContent = Field(discriminator="kind", description="the result")


def reproduction_folder(recipe: Recipe) -> str:
    """Returns the folder (URI) of everything that a reproduction leaves."""
    return join(absolute_uri(recipe.storage), REPRODUCTION_FOLDER)


class KeptResults:
    """The results of a graph's steps below a folder."""

    def __init__(self, folder: str, graph: Graph) -> None:
        """Describes them; nothing is read yet.

        Args:
            folder: The reproduction's folder.
            graph: The steps.
        """
        self._folder = folder
        self._graph = graph

    def run_name(self, step: Step) -> str:
        """Returns the name of a step with its digest, which no other inputs share."""
        return f"{step.name}-{self._graph.digests[step.name]}"

    def find(self, step: Step) -> StepResult | None:
        """Returns the result of a step; None if it is not kept.

        Raises:
            RunError: The file is damaged.
        """
        return read_record(self._uri(step), StepResult)

    def keep(self, step: Step, content: StepContent, began: float, seconds: float) -> StepResult:
        """Writes and returns the result of a step."""
        digests = self._graph.digests
        result = StepResult(
            name=step.name,
            kind=step.kind,
            digest=digests[step.name],
            inputs=dict(step.inputs),
            parents={parent: digests[parent] for parent in step.parents},
            began=began,
            seconds=seconds,
            content=content,
        )
        write_text(self._uri(step), result.model_dump_json(indent=1))
        return result

    def _uri(self, step: Step) -> str:
        return join(self._folder, STEPS_FOLDER, self.run_name(step), RESULT_FILE)
