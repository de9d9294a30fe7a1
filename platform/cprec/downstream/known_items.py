"""The items that a hybrid model knows: those that one domain had in one corpus version.

A hybrid model has one embedding for each of them, by their order in the domain. Items of another
domain, or items that joined since, have none: they would get another item's, or an index that does
not exist.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow.compute as pc
from safetensors.torch import load

from cluster.errors import RunError
from cluster.storage import exists, join, read_bytes, sha256
from corpus.sampling.source import Source
from corpus.store.tables import Corpus
from cprec.downstream.domain import Domain
from cprec.downstream.stored_model import BEHAVIOUR_FILE, BEHAVIOUR_FOLDER
from cprec.runs import checkpoint
from cprec.runs.record_files import read_json_object

KNOWN_ITEMS_FILE = "items.json"
"""File of that folder that says of which items the embeddings are."""


@dataclass(frozen=True)
class KnownItems:
    """Whose item embeddings a hybrid model has, as stored in items.json.

    Attributes:
        domain: Name of the domain.
        corpus_fingerprint: Identity of the corpus; None in checkpoints of earlier releases.
        corpus_version: Version of the corpus.
        count: Items of the domain in that version.
        digest: SHA-256 of the items' ids, in the order of their embeddings; None in checkpoints of
            earlier releases.
    """

    domain: str
    corpus_fingerprint: str | None
    corpus_version: int
    count: int
    digest: str | None = None

    @classmethod
    def of_domain(cls, corpus: Corpus, domain: Domain) -> "KnownItems":
        """Returns the items of a domain in a corpus version."""
        ids = _read_item_ids(corpus, domain.name)
        return cls(domain.name, corpus.fingerprint, corpus.version, len(ids), _digest(ids))

    def to_text(self) -> str:
        """Returns the content of items.json."""
        return json.dumps(asdict(self), indent=1)


def is_hybrid(checkpoint_uri: str | None) -> bool:
    """Returns whether a checkpoint holds a hybrid model; None, the base itself, does not."""
    return checkpoint_uri is not None and exists(join(checkpoint_uri, BEHAVIOUR_FOLDER))


def read_known_items(checkpoint_uri: str) -> KnownItems:
    """Reads which items a hybrid model knows; in checkpoints of earlier releases, by its ledger."""
    folder = join(checkpoint_uri, BEHAVIOUR_FOLDER)
    file = join(folder, KNOWN_ITEMS_FILE)
    if exists(file):
        return KnownItems(**read_json_object(file))
    portion = checkpoint.read_ledger(checkpoint_uri).plan.eras[0].portions[0]
    embeddings = load(read_bytes(join(folder, BEHAVIOUR_FILE)))["items"]
    return KnownItems(Source.parse(portion.source).name, None, portion.version, len(embeddings))


def require_known_items(name: str, checkpoint_uri: str, corpus: Corpus, domain: str) -> None:
    """Checks that a model has an embedding for every item of a domain, if it is hybrid.

    Args:
        name: Name of the model, for messages.
        checkpoint_uri: Its checkpoint.
        corpus: The corpus whose samples it is to score.
        domain: Domain of the samples.

    Raises:
        RunError: It knows another domain, corpus or items, or items have joined the domain since.
    """
    if not is_hybrid(checkpoint_uri):
        return
    known = read_known_items(checkpoint_uri)
    if known.domain != domain:
        raise RunError(
            f"{name}: a hybrid model of domain {known.domain} (corpus version "
            f"{known.corpus_version}), which has no embeddings for items of {domain}; name a model "
            f"tuned on {domain}, or one tuned with finetune.hybrid false"
        )
    if known.corpus_fingerprint not in (None, corpus.fingerprint):
        raise RunError(
            f"{name}: a hybrid model, whose item embeddings are of corpus "
            f"{known.corpus_fingerprint}, version {known.corpus_version}; {corpus.uri} is "
            f"{corpus.fingerprint}: point --corpus at that one, or tune again on this one"
        )
    ids = _read_item_ids(corpus, domain)
    if len(ids) > known.count:
        raise RunError(
            f"{name}: a hybrid model that knows the {known.count:,} items that {domain} had in "
            f"corpus version {known.corpus_version}; version {corpus.version} has {len(ids):,}: "
            f"score it with --corpus-version {known.corpus_version}, or tune again on version "
            f"{corpus.version}"
        )
    if known.digest is None:
        return
    if len(ids) < known.count:  # an earlier version; a later one only adds to its items
        ids = _read_item_ids(Corpus.open(corpus.uri, known.corpus_version), domain)
    if _digest(ids) != known.digest:
        raise RunError(
            f"{name}: a hybrid model, whose embeddings are of other items than {domain} has in "
            f"{corpus.uri}: both began as corpus {corpus.fingerprint}, and were appended to "
            "differently; point --corpus at the one that it was tuned on, or tune again on this one"
        )


def _read_item_ids(corpus: Corpus, domain: str) -> list[str]:
    """Reads the ids of a domain's items, in the order of their numbers (`Domain`)."""
    items = corpus.read_items()
    ids: list[str] = items.filter(pc.equal(items["domain"], domain))["item_id"].to_pylist()
    return ids


def _digest(ids: Sequence[str]) -> str:
    """Returns the SHA-256 of a list of item ids."""
    return sha256(json.dumps(list(ids)).encode())
