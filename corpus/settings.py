"""Settings of the corpus: where interactions are read from and how they become samples."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from cluster.section import Section

SafeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
"""The name of a domain or run: safe in file names and URIs."""


def _check_day(text: str) -> str:
    """Returns a day of the calendar as it is; raises ValueError for another text."""
    if date.fromisoformat(text).isoformat() != text:
        raise ValueError("a day is written as 2026-11-27")
    return text


Day = Annotated[str, AfterValidator(_check_day)]
"""A day in UTC, such as 2026-11-27; quoted in a recipe, where YAML would read a date."""
SECONDS_PER_DAY = 86_400
MAX_CANDIDATES = 128
"""Maximum candidates of a sample: the column of the target's position is int8 (0 .. 127)."""


def describe_repeated(key: str, names: Iterable[str]) -> str:
    """Returns which domains a key of `data` names more than once, for people; empty if none."""
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    return f"{repeated} more than once in data.{key}; name a domain once" if repeated else ""


def day_start(day: Day) -> int:
    """Returns the first second of a day, in Unix seconds."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())


TemplateName = Literal["table1", "braces"]
"""A template of the prompt (`cprec.encode.prompt`)."""
DEFAULT_TEMPLATE: TemplateName = "table1"
UNRECORDED_TEMPLATE: TemplateName = "braces"
"""Template of what does not say which it has: earlier releases had no other."""


class ColumnSettings(Section):
    """`data.columns`: names of the columns in the files, where they differ from the format's."""

    user_id: str | None = Field(None, description="column of user ids")
    item_id: str | None = Field(None, description="column of item ids, in interactions and items")
    timestamp: str | None = Field(None, description="column of times of interaction")
    rating: str | None = Field(
        None, description="column of ratings; read only if data.min_rating is set"
    )
    title: str | None = Field(None, description="column of item titles")


Format = Literal[
    "root",
    "simulated",
    "feedback",
    "amazon2014",
    "amazon2018",
    "amazon2023",
    "movielens",
    "ninerec",
]
"""How the files of a data root are laid out."""
TimeUnit = Literal["s", "ms", "us", "ns"]


class DataRoot(Section):
    """One of several data roots. What it leaves out is as `data` says."""

    path: str = Field(description="the folder (path or s3://)")
    format: Format | None = Field(None, description="as `data.format`")
    columns: ColumnSettings | None = Field(None, description="as `data.columns`, all of it")
    time_unit: TimeUnit | None = Field(None, description="as `data.time_unit`")
    platform: SafeName | None = Field(None, description="as `data.platform`")
    domains: tuple[SafeName, ...] | None = Field(
        None, description="the domains to read here; default: those whose files are here"
    )

    @classmethod
    def read(cls, entry: "str | DataRoot") -> "DataRoot":
        """Returns an entry of the list `data.root`, where a path alone will do."""
        return cls(path=entry) if isinstance(entry, str) else entry


def _kind_of_root(value: Any) -> str:
    """Returns which type of `data.root`, or of an entry of its list, a value is to be read as."""
    if isinstance(value, list | tuple):
        return "list"
    return "path" if isinstance(value, str) else "entry"


_BY_KIND = Discriminator(
    _kind_of_root,
    custom_error_type="data_root",
    custom_error_message="give a path, or a list of paths and of {path: ..., format: ...}",
)
_Path = Annotated[str, Tag("path")]
_Entry = Annotated[_Path | Annotated[DataRoot, Tag("entry")], _BY_KIND]
_Roots = Annotated[_Path | Annotated[tuple[_Entry, ...], Tag("list")], _BY_KIND]


class DataSettings(Section):
    """`data`: the raw data, and the rules that turn it into samples (paper Sec. 4.3, 5.1)."""

    root: _Roots = Field(
        "out/shoppers",
        description="data root: the folder with the raw data (path or s3://); or several, as "
        "[a, b] or [a, {path: b, format: movielens}], where format, columns, time_unit, platform "
        "and domains may differ",
    )
    format: Format = Field(
        "root",
        description="root: interactions/<Domain> and items/<Domain> as .parquet, .csv, .tsv, "
        ".inter, .item, .json or .jsonl; simulated: the same, written by the seeded simulation "
        "if missing; feedback, for an append: purchases/<Domain> and served/<Domain>, items/ only "
        "for new ones; amazon...: reviews and meta of that release as JSON lines; "
        "movielens: ratings and movies as .dat or .csv; "
        "ninerec: <Domain>_pair.csv and <Domain>_item.csv; "
        "text may be compressed (.gz, .bz2, .zst)",
    )
    columns: ColumnSettings = ColumnSettings()
    platform: SafeName | None = Field(
        None,
        description="whose customers the users are: they are other people than those of other "
        "platforms, also where ids are equal; their ids become <platform>/<id>",
    )
    time_unit: TimeUnit | None = Field(
        None,
        description="unit of times that are numbers since 1970; "
        "default: the format's (amazon2023: ms, all others: s)",
    )
    latest: int | None = Field(
        None,
        ge=1,
        description="latest plausible time in Unix seconds; default: a day from now",
    )
    until_day: Day | None = Field(
        None,
        description="leave out interactions after this day (UTC, such as 2026-11-27): "
        "a log up to a day, to append the next days later",
    )
    min_rating: float | None = Field(
        None,
        description="leave out interactions with a lower rating or none; "
        "default: ratings are not read",
    )
    max_per_user: int = Field(
        10_000,
        ge=5,
        description="maximum interactions per user and domain; the most recent are kept",
    )
    domains: tuple[SafeName, ...] = Field(
        (), description="domains to pre-train on, comma-separated"
    )
    held_out: tuple[SafeName, ...] = Field(
        (),
        description="domains kept out of pre-training, for fine-tuning and evaluation, "
        "comma-separated",
    )
    max_quarantined: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="stop if a larger fraction of a domain's rows lacks a user, item, title or "
        "plausible time, or cannot be read",
    )
    prompt_injection: Literal["keep", "neutralise", "drop"] = Field(
        "keep",
        description="titles with prompt injections (braces, sentences of the prompt, chat "
        "markers, instructions): keep them; neutralise: write { } as ( ) and part the letters "
        "of a phrase, as in T·h·e a·n·s·w·e·r i·s; drop: leave the items out; "
        "what is kept is counted (docs/how-to/inspect-a-corpus.md)",
    )
    prompt_template: TemplateName | None = Field(
        None,
        description="template of the prompts, for all models that are trained on the corpus: "
        "table1: the paper's Table 1; braces: each list of titles in braces, as in earlier "
        "releases; default: table1 for a new corpus, and for one that is there its own",
    )
    k_core: int = Field(
        3,
        ge=1,
        description="drop users and items with fewer interactions in a domain, "
        "until all that remain have as many",
    )
    min_history: int = Field(
        3, ge=1, description="minimum items before a target; with fewer there is no sample"
    )
    max_history: int = Field(
        10, ge=1, description="maximum items before a target; the most recent are kept"
    )
    num_candidates: int = Field(
        20,
        ge=2,
        le=MAX_CANDIDATES,
        description=f"candidates per sample, including the target; at most {MAX_CANDIDATES}",
    )
    mixed_min_domains: int = Field(
        2, ge=1, description="mixed samples: minimum domains that the history spans"
    )
    mixed_min_target_domain: int = Field(
        1,
        ge=0,
        description="mixed samples: minimum items of the target's own domain in the history",
    )
    users_together: bool = Field(
        False,
        description="order the samples of a source by user, for train.targets_per_pass; "
        "false: in pseudo-random order, which trains better",
    )
    distribute_above: int = Field(
        30_000_000,
        ge=0,
        description="number of interactions above which a build or an append runs on Ray "
        "instead of in one process",
    )

    @property
    def roots(self) -> tuple[DataRoot, ...]:
        """The data roots, one or several."""
        entries = (self.root,) if isinstance(self.root, str) else self.root
        return tuple(DataRoot.read(entry) for entry in entries)

    @property
    def root_paths(self) -> str:
        """The paths of the data roots, for people."""
        return ", ".join(root.path for root in self.roots)

    @property
    def only_root(self) -> str:
        """The path of the data root, of settings that have one."""
        (root,) = self.roots
        return root.path

    @model_validator(mode="after")
    def _check_consistency(self) -> "DataSettings":
        if not self.roots:
            raise ValueError("data.root is an empty list; name at least one data root")
        formats = {self.format, *(root.format for root in self.roots)}
        if "simulated" in formats and not isinstance(self.root, str):
            raise ValueError(
                "data.root is a list, and simulated shoppers are written to one place; give one "
                "path, or another data.format"
            )
        if self.max_history < self.min_history:
            raise ValueError(
                f"data.max_history ({self.max_history}) must be at least "
                f"data.min_history ({self.min_history})"
            )
        for key, names in (("domains", self.domains), ("held_out", self.held_out)):
            if problem := describe_repeated(key, names):
                raise ValueError(problem)
        if both := set(self.domains) & set(self.held_out):
            raise ValueError(
                f"{sorted(both)} in both data.domains and data.held_out; "
                "a domain is one or the other"
            )
        return self


class SimulateSettings(Section):
    """`simulate`: the simulated shoppers; used when data.format is simulated."""

    users: int = Field(1500, ge=10, description="number of shoppers")
    items_per_domain: int = Field(400, ge=30, le=100_000, description="items per domain")
    domains_per_user: int = Field(
        3, ge=1, description="mean number of domains in which a shopper buys"
    )
    interactions_per_domain: int = Field(
        12, ge=5, description="mean number of purchases of a shopper in one of their domains"
    )
    drift: float = Field(
        0.02,
        ge=0.0,
        le=1.0,
        description="probability, per purchase, that one of the shopper's favourites is redrawn",
    )
