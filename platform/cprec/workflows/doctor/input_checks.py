"""Checks the inputs of a run: the corpus, its schema, the base model, and its tokenizer."""

from collections.abc import Iterator

from cluster.errors import CorpusError, UserError
from cluster.storage import is_remote, list_oldest_first
from corpus.sampling.replay_text import TEXT_WINDOW_SCHEMA
from corpus.sampling.schemas import SAMPLE_SCHEMA
from corpus.sampling.source import SourceKind
from corpus.store.delta import open_parquet
from corpus.store.tables import Corpus, Stream, read_rows, translate_file_errors
from cprec.config.recipe import Recipe
from cprec.encode.prompt import TEMPLATES
from cprec.model import base_checks
from cprec.model.base_files import list_files, local_directory
from cprec.model.base_uri import (
    TINY_BASE,
    is_unbuilt,
    locate_base,
    locate_named_base,
    read_base_template,
)
from cprec.workflows.doctor.findings import Finding
from cprec.workflows.evaluation.models import check_tokenizer
from cprec.workflows.pretraining.prepare import has_corpus, is_built_first


def check_corpus(recipe: Recipe) -> Iterator[Finding]:
    """Opens the corpus, and reads the first row of every stream, its checksum included.

    Raises:
        CorpusError: There is no such version, or a file is missing or damaged.
    """
    if is_built_first(recipe):
        yield Finding("corpus", "ok", f"none at {recipe.corpus} yet; cpt builds it first")
        return
    if not has_corpus(recipe):
        todo = "build it with jobs/build_corpus.py and this recipe, or correct the key corpus"
        yield Finding("corpus", "warn", f"none at {recipe.corpus} yet", "one to train on", todo)
        return
    corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
    streams = [s for split in ("train", "validation", "test") for s in corpus.streams(split)]
    if not any(stream.split == "train" for stream in streams):
        raise CorpusError(f"{corpus.uri}: version {corpus.version} holds no samples to train on")
    rows = sum(stream.rows for stream in streams)
    yield Finding(
        "corpus: version",
        "ok",
        f"version {corpus.version} of {corpus.uri}: {len(streams)} streams, {rows:,} rows",
    )
    for stream in streams:
        _check_schema(corpus, stream)
    items = corpus.read_items()
    yield Finding("corpus: schema", "ok", f"{len(streams)} streams, {items.num_rows:,} items")


def _check_schema(corpus: Corpus, stream: Stream) -> None:
    """Checks the columns of a stream in its first file, and the checksum of its first row.

    Raises:
        CorpusError: The file is missing or damaged, or lacks a column, or has one of another type.
    """
    file = stream.files[0].uri
    with translate_file_errors(file):
        found = open_parquet(file).schema_arrow
    for column in TEXT_WINDOW_SCHEMA if stream.source.kind is SourceKind.TEXT else SAMPLE_SCHEMA:
        seen = found.field(column.name).type if column.name in found.names else "missing"
        if seen != column.type:
            raise CorpusError(
                f"{file}: column {column.name} is {seen}, and {column.type} is wanted; this is no "
                f"file that version {stream.version} of {corpus.uri} was built with: restore it, "
                "or build the corpus again elsewhere"
            )
    read_rows(stream, 0, 1)


def check_base(recipe: Recipe) -> Iterator[Finding]:
    """Looks at the files of the base model, and tries its tokenizer on titles of the corpus.

    What is in an object store is listed, and not copied.

    Raises:
        RecipeError: A file is missing or damaged, or the tokenizer cannot be used.
    """
    corpus = _open_corpus(recipe)
    if corpus is None and recipe.model.base == TINY_BASE:
        yield Finding("base", "ok", "the tiny base, which is built of the corpus's titles")
        return
    base = locate_named_base(recipe.model.base) if corpus is None else locate_base(recipe, corpus)
    if is_unbuilt(recipe, base):
        yield Finding("base", "ok", f"{base}: none yet; the first run builds it")
        return
    yield Finding("base: files", "ok", _describe_files(base))
    if corpus is None:
        yield Finding("base: tokenizer", "warn", "not tried: there is no corpus to take titles of")
        return
    template = read_base_template(base) or TEMPLATES[corpus.prompt_template]
    reason = check_tokenizer(recipe, corpus, base, recipe.model.revision, template)
    if is_remote(base):
        yield Finding("base: tokenizer", "ok", "not tried: a run copies it first")
    elif not reason:
        yield Finding("base: tokenizer", "ok", f"fits, and so do {recipe.model.max_tokens} tokens")
    else:
        yield Finding(
            "base: tokenizer",
            "warn",
            f"prompts are tokenised one by one: {reason}",
            "titles tokenised once",
            "nothing, if reading data stays faster than training",
        )


def _open_corpus(recipe: Recipe) -> Corpus | None:
    """Opens the corpus; None if it cannot be opened, of which `check_corpus` tells."""
    try:
        return Corpus.open(recipe.corpus, recipe.corpus_version)
    except (UserError, OSError):
        return None


def _describe_files(base: str) -> str:
    """Checks the files of a base as far as they are at hand, and returns what they are."""
    if is_remote(base):
        names = list_files(base)
        total = sum(entry.size for entry in list_oldest_first(base) if entry.name in names)
        return f"{base}: {len(names)} files, {total / 1e9:,.1f} GB, copied once to each node"
    directory = local_directory(base)
    if directory is None:
        return f"{base}: a hub id, fetched once by each node"
    base_checks.check_files(directory, base)
    return f"{directory}: every file of weights is whole"
