"""What a build or an append depends on: the rules of a corpus, its settings and its input files."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from cluster import storage
from cluster.errors import DataError
from corpus.backend import MapFunction
from corpus.ingest import data_roots, prompt_injection
from corpus.ingest.sources import layout
from corpus.settings import DEFAULT_TEMPLATE, UNRECORDED_TEMPLATE, DataSettings
from corpus.store.tables import Corpus

RULES_VERSION = 1
"""Version of the code that makes samples; raised whenever the same input would make others."""

RULE_KEYS = (
    "k_core",
    "min_history",
    "max_history",
    "num_candidates",
    "mixed_min_domains",
    "mixed_min_target_domain",
    "users_together",
    "prompt_injection",
    "prompt_template",
)
"""Keys of `data` that all versions of a corpus share: they decide which samples exist, or what
stands in them."""


def rules(data: DataSettings, seed: int) -> dict[str, Any]:
    """Returns the rules that all versions of a corpus share: RULE_KEYS, RULES_VERSION, the seed."""
    data = with_template(data)
    settings: dict[str, Any] = json.loads(
        data.model_dump_json(include=set(RULE_KEYS), exclude=_omitted_keys(data))
    )
    return {
        **{f"data.{key}": value for key, value in settings.items()},
        "seed": seed,
        "rules": RULES_VERSION,
    }


def _omitted_keys(data: DataSettings) -> set[str]:
    """Returns the keys to leave out of rules and fingerprints: later additions, as it was before.

    So a corpus of a release that did not have these keys keeps its rules and its fingerprint.
    """
    defaults = {
        "users_together": False,
        "prompt_injection": "keep",
        "until_day": None,
        "prompt_template": UNRECORDED_TEMPLATE,
        "platform": None,
    }
    return {key for key, default in defaults.items() if getattr(data, key) == default}


def with_template(data: DataSettings, corpus: Corpus | None = None) -> DataSettings:
    """Returns settings that name a template of the prompt.

    Args:
        data: Settings that may leave it to the corpus.
        corpus: The corpus that is there; None for a new one.
    """
    if data.prompt_template is not None:
        return data
    template = DEFAULT_TEMPLATE if corpus is None else corpus.prompt_template
    return data.model_copy(update={"prompt_template": template})


def fingerprint(data: DataSettings, seed: int, map_files: MapFunction = map) -> str:
    """Returns the identity of a build: a digest of all that its samples depend on.

    These are the rules, the seed, and the content of every input file. Paths do not count.

    Args:
        data: Settings of the build.
        seed: Seed for drawing candidates.
        map_files: Applies a function to many files (`corpus.backend.Backend.map`).

    Raises:
        DataError: A file is missing, or its content is not what SHA256SUMS says.
    """
    data = with_template(data)
    settings = json.loads(
        data.model_dump_json(exclude={"root", "format", "distribute_above"} | _omitted_keys(data))
    )
    settings["layout"] = layout.effective_format(data)
    if data.prompt_injection != "keep":
        settings["injection_patterns"] = prompt_injection.PATTERNS
    settings["domains"] = sorted(data.domains)
    settings["held_out"] = sorted(data.held_out)
    settings |= root_differences(data)
    digests = file_digests(data, (*settings["domains"], *settings["held_out"]), map_files)
    return storage.sha256(
        json.dumps([RULES_VERSION, settings, seed, digests], sort_keys=True).encode()
    )


def root_differences(data: DataSettings) -> dict[str, Any]:
    """Returns what is read otherwise in some data roots than `data` itself says.

    Returns:
        `by_domain`: what differs, by domain; empty where nothing does, so that the same files have
        the same identity in one data root and in several.
    """
    keys = {"columns", "time_unit", "platform"}

    def reading(single: DataSettings) -> dict[str, Any]:
        dumped = single.model_dump(mode="json", include=keys)
        return {**dumped, "layout": layout.effective_format(single)}

    usual = reading(data)
    by_domain = {
        domain: {key: value for key, value in reading(single).items() if value != usual[key]}
        for domain in sorted((*data.domains, *data.held_out))
        if reading(single := data_roots.at_root(data, domain)) != usual
    }
    return {"by_domain": by_domain} if by_domain else {}


def file_digests(
    data: DataSettings, domains: Sequence[str], map_files: MapFunction = map
) -> dict[str, list[list[str]]]:
    """Returns the SHA-256 of every file of each domain, as [interaction files, item files].

    Args:
        data: Settings that say where the files are.
        domains: Names of the domains.
        map_files: Applies a function to many files (`corpus.backend.Backend.map`).

    Raises:
        DataError: A file is missing, or its content is not what SHA256SUMS says.
    """
    roots = {domain: data_roots.at_root(data, domain) for domain in domains}
    files_by_domain = {domain: layout.find_files(data, domain) for domain, data in roots.items()}
    sums = {
        uri: digest
        for root in dict.fromkeys(data.only_root for data in roots.values())
        for uri, digest in layout.read_sha256sums(root).items()
    }
    # Domains may share a file, which is then read once.
    files = list(
        dict.fromkeys(file for kinds in files_by_domain.values() for kind in kinds for file in kind)
    )
    digests = dict(
        zip(
            files,
            map_files(partial(_verified_digest, sums), files),
            strict=True,
        )
    )
    return {
        domain: [[digests[file] for file in kind] for kind in kinds]
        for domain, kinds in files_by_domain.items()
    }


def _verified_digest(expected_digests: Mapping[str, str], file: str) -> str:
    """Returns the SHA-256 of a file; raises DataError if SHA256SUMS has another one for it."""
    digest = storage.file_sha256(file)
    expected = expected_digests.get(file, digest)
    if expected != digest:
        raise DataError(
            f"{file}: its content is not what SHA256SUMS says (sha256 is {digest[:16]}..., "
            f"expected: {expected[:16]}...); fetch or write it again"
        )
    return digest
