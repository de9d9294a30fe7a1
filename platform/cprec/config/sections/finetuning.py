"""Fine-tuning on one domain: the baseline whose embeddings it uses, trials, their search."""

from typing import Annotated, Literal

from pydantic import Field

from cluster.section import Section
from corpus.settings import SafeName


class BaselineSettings(Section):
    """`baseline`: small recommenders that are trained on one domain alone.

    A key that begins with the name of one of them, and an underscore, is of that one alone.
    """

    size: int = Field(64, ge=4, description="hidden size, and size of SASRec's item embeddings")
    blocks: int = Field(2, ge=1, description="attention blocks of all but GRU4Rec")
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="dropout while training")
    batch: int = Field(128, ge=2, description="sequences of one step")
    lr: float = Field(1e-3, gt=0, description="learning rate of all but GRU4Rec (Adam)")
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
    cl4srec_weight: float = Field(
        0.1, ge=0, description="weight of CL4SRec's contrastive loss beside that of the next item"
    )
    cl4srec_crop: float = Field(
        0.6, gt=0, le=1, description="fraction of a sequence that cropping keeps"
    )
    cl4srec_mask: float = Field(0.3, ge=0, le=1, description="fraction of a sequence masked")
    cl4srec_reorder: float = Field(0.6, ge=0, le=1, description="fraction of a sequence shuffled")
    tedrec_experts: int = Field(8, ge=1, description="experts that adapt TedRec's text vectors")
    tedrec_text_dropout: float = Field(
        0.2, ge=0, lt=1, description="dropout of TedRec's text vectors while training"
    )
    tedrec_temperature: float = Field(
        0.07, gt=0, description="divides the cosines in TedRec's loss"
    )
    morec_layers: int = Field(
        0, ge=0, description="dense layers of MoRec's item tower after the first"
    )

    @classmethod
    def keys_of(cls, name: str) -> set[str]:
        """Returns the keys that decide the training of one baseline.

        Args:
            name: Its name, as in `evaluate.models`.
        """
        others = tuple(f"{other}_" for other in ("cl4srec", "tedrec", "morec") if other != name)
        return {key for key in cls.model_fields if key != "seeds" and not key.startswith(others)}


Curriculum = Literal["all", "epoch"]
"""Over what a fine-tuning's batches become hybrid: all epochs, or the first one."""


class FinetuneSettings(Section):
    """`finetune`: fine-tuning on one domain, as in LLaRA; jobs/tune_lr.py searches its lr."""

    domain: SafeName | None = Field(
        None, description="domain to fine-tune on; default: the first of data.held_out"
    )
    start: str = Field(
        "candidate",
        description="what LoRA starts from: fresh (= LLaRA); or candidate (the newest version of "
        "this run), champion, a version number, models:/NAME/3, or the URI of a checkpoint or an "
        "adapter (= CPRec)",
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
    curriculum: Curriculum = Field(
        "all",
        description="samples T over which batches become hybrid, with probability t/T: all: those "
        "of all epochs, as in LLaRA's code; epoch: those of the first epoch, after which every "
        "batch is hybrid (paper Sec. 3.1)",
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


LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SearchSettings(Section):
    """`search`: the learning rates that are tried, and how."""

    lrs: tuple[LearningRate, ...] = Field(
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
