"""Pre-training: learning rate and order of the data, the loop and its engine, checkpoints."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cluster.section import Section
from corpus.sampling.source import Source, SourceKind
from cprec.schedule.objectives import check_weights
from cprec.schedule.passes import Passes
from cprec.schedule.wsa import Mode


class ScheduleSettings(Section):
    """`schedule`: Warmup-Stable-Annealing, counted in samples (paper Eq. 2, 3)."""

    lr_min: float = Field(5e-6, gt=0, description="l, the learning rate at the start and the end")
    lr_max: float = Field(5e-4, gt=0, description="h, the learning rate of the stable phase")
    warmup_fraction: float = Field(
        0.05, ge=0.0, le=1.0, description="W as a fraction of the domain-specific samples"
    )
    mode: Mode = Field(
        Mode.WSA,
        description="which data is trained when, and at which learning rate: wsa is the method, "
        "the others are the ablations of paper Fig. 4 and other schedules",
    )
    segment_samples: int = Field(
        8192,
        ge=1,
        description="largest number of samples of a segment, which is one Ray Data execution",
    )
    poll_samples: int = Field(
        8192,
        ge=1,
        description="look for a new corpus version at least once in so many samples",
    )
    hold_open: bool = Field(
        False,
        description="hold the stable phase open at its end and wait for new domains, "
        "until it is released",
    )
    epochs: int = Field(
        1,
        ge=1,
        description="how often samples are trained, each source in its own phase; from epoch to "
        "epoch, blocks of 1,024 of them change places",
    )
    weights: dict[str, Annotated[float, Field(ge=0.0)]] = Field(
        {},
        description="passes over the samples of a source in one epoch, such as {domain/Books: 2, "
        "mixed: 0.5}: 2 trains each twice, 0.5 half of them, 0 none; 1 for sources not named",
    )
    objectives: dict[str, dict[str, float]] = Field(
        {},
        description="what the samples of a source teach, as weights of objectives, such as "
        "{domain: {next_item: 3, masked_item: 1}, mixed: {next_item: 1, next_history: 1}}; domain "
        "is all domains that are not named as domain/NAME; the objectives are next_item, "
        "masked_item, replaced_item and next_history; every sample has one, drawn from its id; "
        "next_item for sources not named",
    )
    replay_share: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="fraction of the samples up to S that are windows of the corpus's texts "
        "(jobs/append_domain.py --text), trained with plain next-token loss; "
        "a window has far more supervised tokens than an answer, so a small fraction weighs much; "
        "0: none",
    )
    annealing_share: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="fraction of the samples, replayed text apart, that annealing reads, such as "
        "0.2 for 80/20; mixed samples beyond it stay for later runs, and a plan says where there "
        "are too few; a branch anneals on all of them; null: as the corpus has them",
    )
    min_annealing_share: float = Field(
        0.05,
        ge=0.0,
        lt=1.0,
        description="warn of a plan whose annealing phase is a smaller fraction of its samples; "
        "0: never",
    )
    rewarm: bool = Field(
        False, description="warm up again when a run continues from a checkpoint of another run"
    )

    def __hash__(self) -> int:
        # A mapping has no hash, and every section needs one; equal settings have equal ones.
        return hash((self.lr_min, self.lr_max, self.epochs, frozenset(self.weights.items())))

    @property
    def passes(self) -> Passes:
        """How often the samples of each source are trained."""
        return Passes(self.epochs, self.weights)

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: dict[str, float]) -> dict[str, float]:
        for name in weights:
            if not _is_trained_source(name):
                raise ValueError(
                    f"{name!r} is no source that is trained; those are domain/NAME, mixed and "
                    "text/NAME"
                )
        return weights

    @field_validator("objectives")
    @classmethod
    def _check_objectives(
        cls, objectives: dict[str, dict[str, float]]
    ) -> dict[str, dict[str, float]]:
        check_weights(objectives)
        return objectives

    @model_validator(mode="after")
    def _check_annealing_share(self) -> "ScheduleSettings":
        if self.annealing_share is not None and not self.mode.anneals_on_mixed:
            raise ValueError(
                f"schedule.annealing_share {self.annealing_share:g}: schedule.mode {self.mode} "
                "does not anneal on mixed samples; leave the share out, or choose another mode"
            )
        return self

    @model_validator(mode="after")
    def _check_lr_bounds(self) -> "ScheduleSettings":
        if self.lr_min > self.lr_max:
            raise ValueError(
                f"schedule.lr_min ({self.lr_min}) must not exceed schedule.lr_max ({self.lr_max})"
            )
        return self


def _is_trained_source(name: str) -> bool:
    """Returns whether a name is of a source of samples or of text for pre-training."""
    try:
        return Source.parse(name).kind is not SourceKind.DOWNSTREAM
    except ValueError:
        return False


class TrainSettings(Section):
    """`train`: the training loop and its engine."""

    global_batch: int = Field(
        128, ge=1, description="samples of one optimizer step, over all workers"
    )
    pack: bool = Field(
        True,
        description="pack samples into rows of train.pack_tokens, "
        "instead of padding train.micro_batch of them; the result is the same: "
        "a base for which it would not be is found at the start, and padded",
    )
    pack_tokens: int | None = Field(
        None,
        ge=64,
        description="largest number of tokens of one forward pass on one worker when packed; null: "
        "as many as the GPU holds by estimate, up to 65536; 2048 on a CPU, whose cache holds no "
        "more",
    )
    targets_per_pass: int = Field(
        1,
        ge=1,
        description="pre-training: largest number of samples of one user that share one pass over "
        "their history; above 1 INEXACT: where histories begin at different items, titles have "
        "seen older ones; needs a corpus with data.users_together, whose order costs quality too "
        "(docs/performance.md)",
    )
    shared_candidates: int = Field(
        0,
        ge=0,
        description="pre-training: candidates that each sample sees of a pool, which serves up to "
        "half as many samples; 0: each sample has its own, from the corpus; above 0 INEXACT: "
        "others' targets are negatives too, and candidates do not see the history "
        "(docs/performance.md)",
    )
    micro_batch: int = Field(
        8, ge=1, description="samples of one forward pass on one worker when padded"
    )
    max_samples: int | None = Field(
        None,
        ge=1,
        description="largest number of domain-specific samples; mixed samples are reduced in the "
        "same proportion; domains that join a run share what is left of it "
        "(docs/decisions/018-a-cap-is-a-budget.md)",
    )
    zero_stage: int | None = Field(
        None,
        ge=0,
        le=3,
        description="ZeRO stage; 0 is computed by an optimizer of our own, 1 to 3 by DeepSpeed; "
        "null: the lowest that fits the GPU by estimate, and 1 on a CPU",
    )
    recompute: Literal["auto", "always", "never"] = Field(
        "auto",
        description="recompute activations in the backward pass: less memory, a third more time; "
        "auto: where memory would not suffice by estimate",
    )
    compile: bool = Field(
        False,
        description="torch.compile the layers (GPU); "
        "packed rows are then filled up to few different lengths, as on a GPU always",
    )
    cuda_graphs: Literal["auto", "never"] = Field(
        "auto",
        description="replay passes as CUDA graphs, which small models need to fill a GPU; auto: at "
        "ZeRO stage 0 with packed rows, where memory holds a pass twice",
    )
    profile: int = Field(
        0, ge=0, description="number of steps that torch profiles into <run>/profile/"
    )
    gradient_clipping: float = Field(
        1.0, gt=0, description="norm to which the gradient of a global batch is clipped"
    )
    adam_beta2: float = Field(0.999, gt=0, lt=1, description="second-moment decay of Adam")
    gpus_per_worker: int = Field(0, ge=0, description="GPUs of each worker; 0: train on the CPU")
    cpus_per_worker: int = Field(1, ge=1, description="logical CPUs of each worker")
    stream_cpus: int = Field(2, ge=1, description="logical CPUs reserved for Ray Data")
    collective_timeout_s: int = Field(
        1800,
        ge=10,
        description="seconds that workers wait for one another in a collective; then the group is "
        "started again from the last checkpoint",
    )
    max_failures: int = Field(
        3, ge=0, description="restarts of the worker group before the run fails"
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="workers that pre-training goes on with where there is room for no more; "
        "null: it waits until there is room for all",
    )
    resize_interval_s: int = Field(
        600,
        ge=1,
        description="with min_workers: seconds between two looks whether there is room for another "
        "number of workers",
    )

    @property
    def inexact_keys(self) -> str:
        """The keys that change what is trained, with their values; empty if none of them is on.

        docs/decisions/009-shared-rows.md says how they change it.
        """
        keys = {
            "targets_per_pass": self.targets_per_pass > 1,
            "shared_candidates": self.shared_candidates > 0,
        }
        return ", ".join(f"train.{key} {getattr(self, key)}" for key, on in keys.items() if on)

    @model_validator(mode="after")
    def _check_shared_rows(self) -> "TrainSettings":
        if 0 < self.shared_candidates < 4:
            raise ValueError(
                "train.shared_candidates: 0, or at least 4 for two samples to share them, "
                f"not {self.shared_candidates}"
            )
        if self.inexact_keys and (self.compile or not self.pack):
            raise ValueError(
                f"{self.inexact_keys}: samples that share tokens need train.pack: true and "
                "train.compile: false"
            )
        return self


class CheckpointSettings(Section):
    """`checkpoint`: how often checkpoints are saved, and how many are kept."""

    every_samples: int = Field(
        8192, ge=1, description="samples between checkpoints, rounded up to a whole step"
    )
    keep: int = Field(
        2,
        ge=1,
        description="newest checkpoints kept; the last of each phase, and the milestones, are "
        "always kept",
    )
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="samples, comma-separated, at which a checkpoint is saved too, and kept: each "
        "at the first whole step from there on",
    )
