"""A corpus keeps the template of its prompts; one that names none is of an earlier release."""

from pathlib import Path
from typing import get_args

import pytest

from cluster.errors import CorpusError
from corpus.append import append
from corpus.build import build
from corpus.fingerprints import fingerprint, rules
from corpus.settings import DataSettings, TemplateName
from tests.unit.corpus.worlds import settings, shop, write_root


@pytest.fixture
def data(tmp_path: Path) -> DataSettings:
    return settings(write_root(tmp_path / "root", shop(("A", "B"))), domains=("A",), held_out=())


def with_template(data: DataSettings, name: TemplateName | None) -> DataSettings:
    return data.model_copy(update={"prompt_template": name})


def test_a_corpus_of_an_earlier_release_keeps_its_identity(data: DataSettings) -> None:
    """The key is no part of it with the only template that there was."""
    assert "data.prompt_template" not in rules(with_template(data, "braces"), 0)
    assert rules(data, 0)["data.prompt_template"] == "table1"
    assert fingerprint(data, 0) == fingerprint(with_template(data, "table1"), 0)
    assert fingerprint(data, 0) != fingerprint(with_template(data, "braces"), 0)


@pytest.mark.parametrize("template", get_args(TemplateName))
def test_what_comes_later_has_the_template_of_the_corpus(
    tmp_path: Path, data: DataSettings, template: TemplateName
) -> None:
    uri = str(tmp_path / "corpus")
    assert build(with_template(data, template), 0, uri, print).prompt_template == template
    assert build(data, 0, uri, print).version == 0
    more = data.model_copy(update={"domains": ("B",)})
    appended = append(more, 0, uri, print)
    assert (appended.version, appended.prompt_template) == (1, template)
    other: TemplateName = "braces" if template == "table1" else "table1"
    with pytest.raises(CorpusError, match=r"data\.prompt_template"):
        append(with_template(more, other), 0, uri, print)
    with pytest.raises(CorpusError, match="holds a corpus of other interactions, rules or seed"):
        build(with_template(data, other), 0, uri, print)


def test_a_new_corpus_has_the_template_of_the_paper(tmp_path: Path, data: DataSettings) -> None:
    assert build(data, 0, str(tmp_path / "corpus"), print).prompt_template == "table1"
