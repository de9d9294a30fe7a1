"""Names of the sources and the splits of samples in a corpus. Pure."""

from enum import StrEnum

from corpus.settings import DataSettings

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")


class SourceKind(StrEnum):
    """Kind of a source: what its samples are, and what they are for."""

    DOMAIN = "domain"
    """Domain-specific sequences, read in the warmup and stable phases."""
    MIXED = "mixed"
    """Sequences across the pre-training domains, read while annealing; there is one such source."""
    TEXT = "text"
    """Windows of plain text, replayed against forgetting."""
    DOWNSTREAM = "downstream"
    """Domain-specific sequences of a domain that is held out of pre-training."""


class Source(str):
    """The name of a source: `domain/Games`, `mixed`, `text/prose` or `downstream/Books`.

    It is a str, so JSON, parquet and Delta store it without conversion in the corpus, in plans,
    traces and events. `kind` and `name` are its parts.
    """

    __slots__ = ()

    def __new__(cls, kind: SourceKind, name: str = "") -> "Source":
        """Builds a source from its parts.

        Args:
            kind: Kind of the source.
            name: Name of the domain or text; empty for `mixed`.

        Raises:
            ValueError: `mixed` has a name, or another kind has none.
        """
        if bool(name) is (kind is SourceKind.MIXED):
            raise ValueError(f"a source of kind {kind} {'has no' if name else 'needs a'} name")
        return super().__new__(cls, f"{kind}/{name}" if name else kind.value)

    def __getnewargs__(self) -> tuple[SourceKind, str]:  # type: ignore[override]
        return self.kind, self.name

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Reads a source from its text, such as `mixed` or `domain/Books`.

        Raises:
            ValueError: The text names no source.
        """
        kind, _, name = text.partition("/")
        return cls(SourceKind(kind), name)

    @property
    def kind(self) -> SourceKind:
        """Kind of its samples."""
        return SourceKind(self.partition("/")[0])

    @property
    def name(self) -> str:
        """Name of its domain or text; empty for `mixed`."""
        return self.partition("/")[2]


MIXED = Source(SourceKind.MIXED)
"""The one source of mixed samples."""


def domain_source(domain: str, data: DataSettings) -> Source:
    """Returns the source of a domain's own samples, by whether it is held out of pre-training."""
    held_out = domain in data.held_out
    return Source(SourceKind.DOWNSTREAM if held_out else SourceKind.DOMAIN, domain)
