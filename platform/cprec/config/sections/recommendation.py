"""Recommendation: for whom which items are ranked, in a batch or over HTTP."""

from typing import Literal

from pydantic import Field

from cluster.section import Section
from corpus.settings import SafeName


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
