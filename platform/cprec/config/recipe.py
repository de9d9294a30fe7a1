"""The recipe: every key of every job.

The driver resolves it once, and it never changes after. Each section is a class with the defaults,
bounds and units of its keys. `cprec.config.recipe_file` reads and writes it as YAML.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator, model_validator

from cluster.section import Section
from corpus.settings import DataSettings, Day, SafeName, SimulateSettings
from cprec.schedule.wsa import Mode

RENAMED_KEYS: Mapping[str, str] = {
    "search.rates": "search.lrs",
    "finetune.floor": "finetune.lr_min_ratio",
    "baseline.rate": "baseline.lr",
    "baseline.gru_rate": "baseline.gru4rec_lr",
}
"""The present name of each key that had another one in an earlier release; sections never change.

Recipes and command lines may still use the old names, and files of earlier releases contain them.
"""

RESERVED_RUN_NAMES = ("bases", "baselines", "mlflow", "vectors")
"""Folders that the storage has beside those of the runs."""


class ModelSettings(Section):
    """`model`: the base model, and which of its weights are trained."""

    base: str = Field(
        "tiny",
        description="a Hugging Face causal LM: hub id, directory or s3:// URI; "
        "or tiny: a small LLaMA, built from the corpus's titles",
    )
    revision: str | None = Field(None, description="revision of a hub id")
    license: str | None = Field(
        None,
        description="license of the base, such as apache-2.0, for model cards; "
        "null: what the base's own card (README.md) says",
    )
    adapter: Literal["lora", "full"] = Field(
        "lora", description="lora: train a low-rank adapter; full: train every weight"
    )
    lora_rank: int = Field(8, ge=1, description="rank r of LoRA, on all linear layers")
    lora_alpha: int = Field(32, ge=1, description="alpha of LoRA")
    lora_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="dropout of LoRA while training")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="precision of weights and activations; master weights and optimizer stay fp32",
    )
    fp8: bool = Field(
        False,
        description="frozen weights in FP8 (needs lora, bf16, zero_stage < 3 and a GPU with FP8): "
        "nearly exact",
    )
    fp8_fast_accumulation: bool = Field(
        False,
        description="products in FP8 are summed with fewer bits, which is faster; needs fp8",
    )
    max_tokens: int = Field(
        2048,
        ge=64,
        description="largest number of tokens of a prompt and its answer; "
        "the oldest titles of a history are dropped first",
    )

    @model_validator(mode="after")
    def _check_fp8(self) -> "ModelSettings":
        if self.fp8 and (self.adapter != "lora" or self.precision != "bf16"):
            raise ValueError(
                "model.fp8 needs adapter: lora and precision: bf16, "
                f"not {self.adapter} and {self.precision}"
            )
        if self.fp8_fast_accumulation and not self.fp8:
            raise ValueError("model.fp8_fast_accumulation needs model.fp8")
        return self


class TinySettings(Section):
    """`tiny`: the model that is built when model.base is tiny."""

    hidden: int = Field(64, ge=16, description="hidden size")
    layers: int = Field(2, ge=1, description="number of layers")
    heads: int = Field(4, ge=1, description="number of attention heads")
    vocabulary: int = Field(
        1024, ge=300, description="tokens of the tokenizer, trained on the corpus's titles"
    )
    language_steps: int = Field(
        300,
        ge=0,
        description="steps of language training on generated product text; 0: random weights",
    )


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
    replay_share: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="fraction of the samples up to S that are windows of the corpus's texts "
        "(jobs/append_domain.py --text), trained with plain next-token loss; "
        "a window has far more supervised tokens than an answer, so a small fraction weighs much; "
        "0: none",
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

    @model_validator(mode="after")
    def _check_lr_bounds(self) -> "ScheduleSettings":
        if self.lr_min > self.lr_max:
            raise ValueError(
                f"schedule.lr_min ({self.lr_min}) must not exceed schedule.lr_max ({self.lr_max})"
            )
        return self


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
        2, ge=1, description="newest checkpoints kept; the last of each phase is always kept"
    )


class MlflowSettings(Section):
    """`mlflow`: tracking and registry."""

    uri: str | None = Field(
        None,
        description="tracking server or SQL URI; "
        "default: SQLite beside the runs (<storage>/mlflow.db, local storage only)",
    )
    experiment: str = Field("cprec", min_length=1, description="experiment that holds the runs")
    model: SafeName = Field("cprec", description="name of the registered model")


class BaselineSettings(Section):
    """`baseline`: SASRec and GRU4Rec, which know item ids only."""

    size: int = Field(64, ge=4, description="hidden size, and size of SASRec's item embeddings")
    blocks: int = Field(2, ge=1, description="attention blocks of SASRec")
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="dropout while training")
    batch: int = Field(128, ge=2, description="sequences of one step")
    lr: float = Field(1e-3, gt=0, description="learning rate of SASRec (Adam)")
    gru4rec_lr: float = Field(0.05, gt=0, description="learning rate of GRU4Rec (Adagrad)")
    max_epochs: int = Field(2000, ge=1, description="largest number of epochs")
    patience: int = Field(
        10,
        ge=1,
        description="epochs without a better HR@1 on validation after which training stops",
    )
    patience_steps: int = Field(
        500,
        ge=0,
        description="steps without a better HR@1, at least, before training stops: "
        "with few samples, ten epochs are only ten steps",
    )
    seeds: int = Field(
        4,
        ge=1,
        description="seeds with which a baseline is trained for evaluation; "
        "fine-tuning uses the embeddings of the first",
    )


class FinetuneSettings(Section):
    """`finetune`: fine-tuning on one domain, as in LLaRA; jobs/tune_lr.py searches its lr."""

    domain: SafeName | None = Field(
        None, description="domain to fine-tune on; default: the first of data.held_out"
    )
    start: str = Field(
        "candidate",
        description="what LoRA starts from: fresh (= LLaRA); or candidate (the newest version of "
        "this run), champion, a version number, models:/NAME/3 or a checkpoint's URI (= CPRec)",
    )
    name: SafeName | None = Field(
        None,
        description="name of the search below <run>/finetune/<domain>/; "
        "default: llara if LoRA starts fresh, else cprec",
    )
    hybrid: bool = Field(
        True, description="true: behaviour tokens of SASRec beside the titles; false: titles only"
    )
    epochs: int = Field(
        5,
        ge=1,
        description="largest number of epochs; "
        "learning rate and curriculum are planned for all of them",
    )
    patience: int = Field(
        2, ge=1, description="epochs without a better HR@1 on validation after which training stops"
    )
    global_batch: int = Field(
        128, ge=1, description="samples of one optimizer step, over all workers"
    )
    max_samples: int | None = Field(
        None,
        ge=1,
        description="largest number of training samples: whole users, "
        "in the order of a hash of their ids",
    )
    validation_users: int = Field(
        1000, ge=1, description="largest number of validation samples scored after each epoch"
    )
    warmup_fraction: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="fraction of all steps over which the learning rate rises; a cosine follows",
    )
    lr_min_ratio: float = Field(
        0.01, gt=0.0, le=1.0, description="lowest learning rate, as a fraction of the highest"
    )
    projector_decay: float = Field(
        1e-5, ge=0.0, description="weight decay of the projector; nothing else decays"
    )


class SearchSettings(Section):
    """`search`: the learning rates that are tried, and how."""

    lrs: tuple[float, ...] = Field(
        (6e-4, 3e-4, 1e-4),
        min_length=1,
        description="highest learning rates to try, comma-separated",
    )
    draws: int = Field(
        0,
        ge=0,
        description="number of learning rates drawn log-uniformly between the lowest and the "
        "highest of search.lrs, instead of those; 0: exactly those of search.lrs",
    )
    seeds: int = Field(
        1, ge=1, description="seeds of each learning rate in the search; their mean decides"
    )
    stopper: Literal["none", "asha", "median"] = Field(
        "none", description="early stopping of bad trials: asha (successive halving) or median"
    )
    winner_seeds: int = Field(
        4, ge=1, description="seeds with which the best learning rate is trained"
    )
    concurrent: int | None = Field(
        None,
        ge=1,
        description="trials that run at a time; default: as many as the cluster has room for",
    )
    gpus_per_trial: float = Field(
        0.0,
        ge=0.0,
        description="GPUs of a trial with one worker, may be a fraction; "
        "with more workers, each takes train.gpus_per_worker",
    )


class EvaluateSettings(Section):
    """`evaluate`: which models are compared, on what."""

    domain: SafeName | None = Field(
        None, description="domain whose samples are scored; default: the first of data.held_out"
    )
    split: Literal["validation", "test"] = Field("test", description="split that is scored")
    models: tuple[str, ...] = Field(
        ("base", "candidate"),
        description="models to compare: base, sasrec, gru4rec, popularity, candidate (the newest "
        "version of this run), champion, a version number, models:/NAME/3, a search of this run "
        "(llara, cprec), or a checkpoint's URI; the first is the reference",
    )
    mode: Literal["score", "generate", "constrained"] = Field(
        "score",
        description="score: all candidates in one pass; generate: greedy text; "
        "constrained: greedy text that can only name candidates",
    )
    candidates: Literal["sampled", "catalogue"] = Field(
        "sampled",
        description="sampled: the candidates of the samples; catalogue: all items of the domain, "
        "of which a language model ranks those that are retrieved (section retrieval); "
        "needs mode: score; the two are never compared with each other",
    )
    retrieve_k: int = Field(
        20,
        ge=2,
        description="with candidates: catalogue, retrieved items that a language model ranks; "
        "best as many as data.num_candidates, which it has learned to choose from",
    )
    from_day: Day | None = Field(
        None,
        description="a split by time: score only what was bought on this day (UTC, such as "
        "2026-11-27) or later, with models that were trained on what was before it; others are "
        "refused",
    )
    to_day: Day | None = Field(
        None, description="with from_day, the last day that is scored; default: the newest"
    )
    max_users: int | None = Field(
        None, ge=1, description="largest number of users, in the order of their sample ids"
    )
    batch: int = Field(
        16,
        ge=1,
        description="samples scored in one forward pass, at most; long ones are fewer, as a pass "
        "has 32,768 tokens at most",
    )
    compile: bool = Field(
        False,
        description="torch.compile the layers to score (GPU): takes some seconds, and is worth "
        "them from some ten thousand samples",
    )
    text: str | None = Field(
        None,
        description="a plain text file (path or s3://) that has nothing to do with behaviours; "
        "its perplexity shows what a model forgot; "
        "measured before pre-training, at its checkpoints, and with each evaluation",
    )
    alpha: float = Field(0.05, gt=0, lt=1, description="significance level of the paired test")

    @model_validator(mode="after")
    def _check_candidates(self) -> "EvaluateSettings":
        if self.candidates == "catalogue" and self.mode != "score":
            raise ValueError(
                "evaluate.candidates: catalogue needs evaluate.mode: score; "
                f"{self.mode} answers name one of a few candidates"
            )
        return self

    @model_validator(mode="after")
    def _check_days(self) -> "EvaluateSettings":
        if self.to_day and not (self.from_day and self.from_day <= self.to_day):
            raise ValueError(
                f"evaluate.to_day {self.to_day} needs evaluate.from_day, that day or one before "
                f"it, not {self.from_day}"
            )
        if self.from_day and self.candidates == "catalogue":
            raise ValueError(
                "evaluate.from_day needs evaluate.candidates: sampled; retrieval counts and "
                "learns what was bought in later days, too"
            )
        return self

    @property
    def days(self) -> str:
        """The days that are scored, in words; empty where all are."""
        if self.from_day is None or self.to_day == self.from_day:
            return self.from_day or ""
        return f"{self.from_day} to {self.to_day}" if self.to_day else f"{self.from_day} on"

    @property
    def form(self) -> str:
        """How models are evaluated: the mode, or catalogue; results of two forms stay apart."""
        return self.mode if self.candidates == "sampled" else self.candidates


class RetrievalSettings(Section):
    """`retrieval`: which items of a catalogue a model is given to rank."""

    sources: tuple[Literal["titles", "sasrec", "popularity"], ...] = Field(
        ("titles", "sasrec", "sasrec"),
        description="whose rankings are fused to candidates: titles (vectors of titles by "
        "retrieval.model), sasrec (where it is trained, and knows the items), popularity; "
        "one that is named twice counts twice; the most popular items fill up what they leave",
    )
    model: str = Field(
        "base",
        description="language model whose mean hidden states are the vectors of titles: base, or "
        "a version or checkpoint as in evaluate.models",
    )
    decay: float = Field(
        0.7,
        gt=0,
        le=1,
        description="weight of an item of the history in the query, as a fraction of that of the "
        "item bought after it",
    )
    exclude_history: bool = Field(
        True, description="items of the history come after all others, in every ranking"
    )


class RecommendSettings(Section):
    """`recommend`: for whom jobs/batch_recommend.py and jobs/serve.py rank which items."""

    domain: SafeName | None = Field(
        None,
        description="domain whose items are ranked; default: the one that a hybrid model knows, "
        "else that of evaluate",
    )
    histories: str | None = Field(
        None,
        description="parquet file or folder (path or s3://) with user_id, history and, if they "
        "are given, candidates: lists of item ids of the domain; or history_titles and "
        "candidates_titles; default: all users of the domain in the corpus",
    )
    as_of: Literal["now", "validation", "test"] = Field(
        "now",
        description="histories of the corpus: now: all items of a user, none held out; validation "
        "or test: as the samples of this split have them, with their candidates",
    )
    candidates: Literal["given", "catalogue"] = Field(
        "catalogue",
        description="given: those that stand beside each history; catalogue: those that are "
        "retrieved of all items of the domain (section retrieval)",
    )
    retrieve_k: int = Field(
        20,
        ge=2,
        description="with candidates: catalogue, retrieved items that the model ranks; "
        "best as many as data.num_candidates, which it has learned to choose from",
    )
    k: int = Field(10, ge=1, description="items of a user in the output, at most")
    exclude_history: bool = Field(
        True, description="items of the history are not recommended, given or not"
    )
    block_users: int = Field(
        512, ge=1, description="users of a block, which is computed and written as a whole"
    )
    out: str | None = Field(
        None,
        description="where the rankings go (path or s3://); "
        "default: <storage>/<run>/recommendations/<domain>/<model>",
    )


class ServeSettings(Section):
    """`serve`: where jobs/serve.py listens, and what it takes; what it ranks is in `recommend`."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: all interfaces")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: any that is free")
    gpus_per_replica: float = Field(
        0.0,
        ge=0,
        description="GPUs of each of `workers` replicas; 0: CPU; "
        "0.5 or less lets the next champion be loaded beside this one on the same GPU",
    )
    max_history: int = Field(1000, ge=1, description="items of a history, at most")
    max_candidates: int = Field(100, ge=2, description="candidates of a request, at most")
    max_kib: int = Field(256, ge=1, description="size of a request (KiB), at most")
    max_waiting: int = Field(
        256, ge=1, description="requests that wait for an answer at a time, at most"
    )
    batch_wait_ms: float = Field(
        5.0,
        ge=0,
        description="time (milliseconds) that a request waits for others to share its pass; "
        "a pass has evaluate.batch of them at most",
    )
    timeout_s: float = Field(
        60.0, gt=0, description="time (seconds) after which a request that has no answer gets none"
    )
    watch_s: float = Field(
        10.0, gt=0, description="time (seconds) between two looks at where the alias points"
    )
    load_timeout_s: float = Field(
        900.0, gt=0, description="time (seconds) that replicas may take to load a model"
    )


class ConsoleSettings(Section):
    """`console`: where jobs/console.py listens, and how often it looks at the storage."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: all interfaces")
    port: int = Field(8090, ge=0, le=65535, description="port to listen on; 0: any that is free")
    refresh_s: float = Field(
        2.0,
        ge=0.2,
        description="time (seconds) between two looks at the files of runs, at least; "
        "a look that takes much CPU time is followed by a longer pause",
    )


class GateSettings(Section):
    """`gate`: what a version must reach before it becomes the champion."""

    min_samples: int = Field(
        100, ge=1, description="smallest number of samples from which a version is judged"
    )
    above_chance: bool = Field(
        True,
        description="refuse a version whose HR@1 is not above that of a random choice among the "
        "candidates, by the lower end of its one-sided interval (Wilson) at 1 - gate.alpha",
    )
    min_hr1: float = Field(0.0, ge=0, le=1, description="lowest HR@1")
    alpha: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="significance level of the tests against chance and against the champion; "
        "a version that is worse than the champion at this level is refused",
    )
    max_slice_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="largest drop of HR@1 against the champion in a slice "
        "(sparse, medium, dense histories); null: any",
    )
    min_valid_ratio: float = Field(
        0.0,
        ge=0,
        le=1,
        description="lowest exact Valid Ratio of generated answers; 0: none are generated",
    )
    max_forgetting: float | None = Field(
        None,
        ge=0,
        description="largest relative increase of the perplexity of evaluate.text over the base "
        "model's; null: any, and it is not measured",
    )


class ClusterSettings(Section):
    """`cluster`: the Ray session."""

    address: str = Field(
        "auto",
        description="auto: the cluster this job runs in, else a local session; "
        "local: always a local one; or host:port",
    )
    num_cpus: int | None = Field(
        None,
        ge=1,
        description="logical CPUs of a local session; "
        "default: as many as the recipe's workers need",
    )


class Recipe(Section):
    """All keys of all jobs; `--help` prints them, and each section's class documents its own."""

    run: SafeName = Field("cpt", description="name of the run, which is stored in <storage>/<run>/")
    storage: str = Field("out/runs", description="where runs are stored (path or s3://)")
    corpus: str = Field("out/corpus", description="where the corpus is stored (path or s3://)")
    continue_from: str | None = Field(
        None,
        description="stable checkpoint (URI) of another run to continue from, "
        "with everything in the corpus that it has not consumed",
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
    gate: GateSettings = GateSettings()
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

    @property
    def logical_cpus(self) -> int:
        """CPUs of a local session: those of the workers and those reserved for Ray Data.

        Ray does not check them against the machine, so they may be more than its cores.
        """
        workers = self.workers * self.train.cpus_per_worker
        return self.cluster.num_cpus or workers + self.train.stream_cpus

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
