"""The recipe: every key of every job.

The driver resolves it once, and it never changes after. Its sections are the classes in
`cprec.config.sections`. `cprec.config.recipe_file` reads and writes it as YAML.
"""

from collections.abc import Mapping

from pydantic import Field, field_validator, model_validator

from cluster.section import Section
from corpus.settings import DataSettings, SafeName, SimulateSettings
from cprec.config.sections.console import ConsoleSettings
from cprec.config.sections.evaluation import EvaluateSettings, GateSettings, RetrievalSettings
from cprec.config.sections.finetuning import BaselineSettings, FinetuneSettings, SearchSettings
from cprec.config.sections.model import ModelSettings, TinySettings
from cprec.config.sections.pretraining import CheckpointSettings, ScheduleSettings, TrainSettings
from cprec.config.sections.recommendation import RecommendSettings, ServeSettings
from cprec.config.sections.reproduction import ReproduceSettings
from cprec.config.sections.services import ClusterSettings, CostSettings, MlflowSettings

RENAMED_KEYS: Mapping[str, str] = {
    "data.speaking_titles": "data.prompt_injection",
    "search.rates": "search.lrs",
    "finetune.floor": "finetune.lr_min_ratio",
    "baseline.rate": "baseline.lr",
    "baseline.gru_rate": "baseline.gru4rec_lr",
}
"""The present name of each key that had another one in an earlier release; sections never change.

Recipes and command lines may still use the old names, and files of earlier releases contain them.
"""

RESERVED_RUN_NAMES = ("bases", "baselines", "lost+found", "mlflow", "reproduction", "vectors")
"""Folders that the storage has beside those of the runs."""


class Recipe(Section):
    """All keys of all jobs; `--help` prints them, and each section's class documents its own."""

    run: SafeName = Field("cpt", description="name of the run, which is stored in <storage>/<run>/")
    storage: str = Field("out/runs", description="where runs are stored (path or s3://)")
    corpus: str = Field("out/corpus", description="where the corpus is stored (path or s3://)")
    continue_from: str | None = Field(
        None,
        description="stable checkpoint of another run to continue from, with everything in the "
        "corpus that it has not consumed; or an adapter (a PEFT directory), whose weights a plan "
        "of its own begins with: a URI, a version number or models:/NAME/3",
    )
    branch: bool = Field(
        False,
        description="with continue_from: only anneal, on mixed samples, "
        "while the trunk goes on or rests",
    )
    corpus_version: int | None = Field(
        None, ge=0, description="corpus version to start from; default: the newest"
    )
    workers: int = Field(2, ge=1, description="number of training workers")
    seed: int = Field(0, ge=0, description="seed of everything that is drawn")
    data: DataSettings = DataSettings()
    simulate: SimulateSettings = SimulateSettings()
    model: ModelSettings = ModelSettings()
    tiny: TinySettings = TinySettings()
    schedule: ScheduleSettings = ScheduleSettings()
    train: TrainSettings = TrainSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    mlflow: MlflowSettings = MlflowSettings()
    baseline: BaselineSettings = BaselineSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    search: SearchSettings = SearchSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    recommend: RecommendSettings = RecommendSettings()
    serve: ServeSettings = ServeSettings()
    console: ConsoleSettings = ConsoleSettings()
    cost: CostSettings = CostSettings()
    gate: GateSettings = GateSettings()
    reproduce: ReproduceSettings = ReproduceSettings()
    cluster: ClusterSettings = ClusterSettings()

    @field_validator("run")
    @classmethod
    def _check_run(cls, run: str) -> str:
        if run in RESERVED_RUN_NAMES or run.startswith("mlflow.db"):
            raise ValueError(
                f"the storage has a folder or file of that name itself; "
                f"any name but {', '.join(RESERVED_RUN_NAMES)} and mlflow.db"
            )
        return run

    def seeds(self, count: int) -> range:
        """Returns the seeds of what is repeated with several: `seed`, and those that follow it."""
        return range(self.seed, self.seed + count)

    @property
    def logical_cpus(self) -> int:
        """CPUs of a local session: those of the workers and those reserved for Ray Data.

        Ray does not check them against the machine, so they may be more than its cores.
        """
        cpus, _ = self.resources_for(self.workers)
        return self.cluster.num_cpus or cpus

    def resources_for(self, workers: int) -> tuple[int, int]:
        """Returns the CPUs and the GPUs that so many training workers and Ray Data take."""
        train = self.train
        cpus = workers * train.cpus_per_worker + train.stream_cpus
        return cpus, workers * train.gpus_per_worker

    def flatten(self) -> dict[str, object]:
        """Returns every value by its dotted key."""
        flat: dict[str, object] = {}
        for name, value in self.model_dump().items():
            if isinstance(value, dict):
                flat |= {f"{name}.{key}": key_value for key, key_value in value.items()}
            else:
                flat[name] = value
        return flat

    @model_validator(mode="after")
    def _check_replay(self) -> "Recipe":
        if self.train.inexact_keys and self.schedule.replay_share:
            raise ValueError(
                f"{self.train.inexact_keys}: not beside schedule.replay_share "
                f"{self.schedule.replay_share:g}; windows of text share nothing"
            )
        return self

    @model_validator(mode="after")
    def _check_objectives(self) -> "Recipe":
        if self.train.inexact_keys and self.schedule.objectives:
            raise ValueError(
                f"{self.train.inexact_keys}: not beside schedule.objectives; samples that share "
                "tokens all have the next item as their objective"
            )
        return self

    @model_validator(mode="after")
    def _check_min_workers(self) -> "Recipe":
        if self.train.min_workers and self.train.min_workers > self.workers:
            raise ValueError(
                f"train.min_workers {self.train.min_workers}: more than workers {self.workers}; "
                f"at most {self.workers}, or raise workers"
            )
        return self
