"""Appends plain text for replay to a corpus as its next version."""

import json

from cluster import storage
from cluster.console import Say
from corpus.ingest import plain_text
from corpus.sampling import replay_text
from corpus.sampling.source import SPLITS
from corpus.store import conditional_puts
from corpus.store.statistics import VersionStatistics
from corpus.store.tables import Corpus, FileKey, write_samples
from corpus.versions import (
    VersionMetadata,
    commit_version,
    commit_with_retries,
    find_version,
    open_if_appended,
)


def append_text(file: str, uri: str, say: Say) -> Corpus:
    """Appends a file of plain text to a corpus as its next version: windows of source text/<name>.

    Appending the same text again changes nothing. Another text of the same name adds to the source.

    Args:
        file: Path or URI of the text; its name becomes the name of the source.
        uri: URI of the corpus.
        say: Receives progress lines.

    Returns:
        The version that the append made, now or earlier.

    Raises:
        RecipeError: The file is missing, is empty, or is not UTF-8.
        DataError: The file's name cannot be the name of a source.
        CorpusError: There is no corpus.
    """
    uri = storage.absolute_uri(uri)
    source = replay_text.text_source(file)
    content = plain_text.read_plain_text(file, "--text")
    Corpus.open(uri)  # raises before anything is written
    conditional_puts.require_conditional_puts(uri)
    identity = _text_identity(source, content)
    return commit_with_retries(
        uri, lambda corpus: _try_append_text(corpus, file, source, content, identity, say), say
    )


def preview_text(file: str, uri: str, say: Say) -> None:
    """Checks the input of `append_text` and says what it would add; writes nothing.

    Arguments and errors are those of `append_text`.
    """
    corpus = Corpus.open(storage.absolute_uri(uri))
    source = replay_text.text_source(file)
    content = plain_text.read_plain_text(file, "--text")
    if (version := find_version(corpus, _text_identity(source, content))) is not None:
        say(f"this text is in the corpus already, since version {version}; nothing to do")
        return
    say(
        f"would make version {corpus.version + 1} of {corpus.uri}: "
        f"{len(replay_text.split_text(content)):,} windows of {source}"
    )


def _text_identity(source: str, content: str) -> str:
    """Returns the identity of an append of text: a digest of its source, content and rules."""
    return storage.sha256(
        json.dumps(
            [
                replay_text.RULES_VERSION,
                replay_text.MAX_WINDOW_BYTES,
                source,
                replay_text.text_digest(content),
            ]
        ).encode()
    )


def _try_append_text(
    corpus: Corpus, file: str, source: str, content: str, identity: str, say: Say
) -> Corpus:
    """Appends text to the newest version; raises CommitConflictError if overtaken."""
    if (done := open_if_appended(corpus, identity, "this text is", say)) is not None:
        return done
    written = write_samples(
        corpus.uri,
        FileKey(source, SPLITS[0], corpus.version + 1),
        [replay_text.text_window_table(source, content)],
    )
    # What the version before records about interactions holds for this one too.
    previous = corpus.commits[-1].metadata
    statistics: VersionStatistics = previous["statistics"]
    metadata: VersionMetadata = {
        "rules": previous["rules"],
        "fingerprint": previous["fingerprint"],
        "domains": previous["domains"],
        "held_out": previous["held_out"],
        "items_version": previous["items_version"],
        "item_runs": previous["item_runs"],
        "appended": identity,
        "quarantine": None,
        "text": replay_text.text_digest(content),
        "origin": {"root": storage.absolute_uri(file), "format": "text", "domains": [source]},
        "statistics": {**statistics, "dropped": {}, "prompt_injections": {}},
        "interactions": [],
    }
    return commit_version(
        corpus.uri,
        (written,),
        metadata,
        parent_version=corpus.version,
        transaction_id=identity,
        say=say,
    )
