"""The prompt of every domain (paper Table 1): titles only, always the word "item".

It has two templates, which differ in what stands around the lists of titles. A corpus keeps the
name of one, and so does whatever is trained on it: a model is scored in the template that it was
trained in (docs/decisions/030-prompt-templates.md).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import RunError
from corpus.sampling.prompt_text import BETWEEN, HEAD, SEPARATOR, TAIL
from corpus.settings import UNRECORDED_TEMPLATE, TemplateName

PROMPT_FILE = "prompt.json"
"""File beside trained weights that names the template of their prompts."""


@dataclass(frozen=True)
class PromptTemplate:
    """A template of prompts: the text around the titles.

    Attributes:
        name: Name of the template.
        opening: Text directly before the first title of a list.
        history_closing: Text directly after the last title of the history.
        candidates_closing: Text directly after the last candidate.
        empty_history: Text in place of a history without titles.
    """

    name: TemplateName
    opening: str
    history_closing: str
    candidates_closing: str
    empty_history: str

    @property
    def fixed_texts(self) -> tuple[str, str, str]:
        """The texts before the history, between the lists, and after the candidates."""
        return (
            f"{HEAD} {self.opening}",
            f"{self.history_closing} {BETWEEN} {self.opening}",
            f"{self.candidates_closing} {TAIL}",
        )

    def render(self, history: Sequence[str], candidates: Sequence[str]) -> str:
        """Renders the prompt of a sample, up to the answer and without a trailing space.

        Args:
            history: Titles of the user's earlier items, oldest first.
            candidates: Titles to choose from, in the order stored in the sample.
        """
        choice = f"{self.opening}{SEPARATOR.join(candidates)}{self.candidates_closing}"
        return " ".join([HEAD, self._render_history(history), BETWEEN, choice, TAIL])

    def title_ends(self, history: Sequence[str], candidates: Sequence[str]) -> list[int]:
        """Returns where each title ends, in characters of the prompt and in its order."""
        start = f"{HEAD} {self.opening}"
        between = f"{HEAD} {self._render_history(history)} {BETWEEN} {self.opening}"
        return [*_list_ends(len(start), history), *_list_ends(len(between), candidates)]

    def _render_history(self, titles: Sequence[str]) -> str:
        if not titles:
            return self.empty_history
        return f"{self.opening}{SEPARATOR.join(titles)}{self.history_closing}"

    def to_json(self) -> str:
        """Returns the content of prompt.json."""
        return json.dumps({"template": self.name})


TABLE1 = PromptTemplate("table1", "", "", ".", "nothing")
BRACES = PromptTemplate("braces", "{", "}", "}.", "{}")
TEMPLATES: Mapping[str, PromptTemplate] = {template.name: template for template in (TABLE1, BRACES)}
UNRECORDED = TEMPLATES[UNRECORDED_TEMPLATE]
"""Template of weights without the file: earlier releases had no other."""


def _list_ends(start: int, titles: Sequence[str]) -> list[int]:
    """Returns where each title of a list ends that begins at a position of a text."""
    ends = []
    for title in titles:
        ends.append(start + len(title))
        start += len(title) + len(SEPARATOR)
    return ends


def parse_template(text: str | None, origin: str) -> PromptTemplate:
    """Returns the template that prompt.json names.

    Args:
        text: Content of the file; None: there is none.
        origin: Where the file is, for the message.

    Raises:
        RunError: It names a template that this release does not have.
    """
    if text is None:
        return UNRECORDED
    try:
        return TEMPLATES[json.loads(text)["template"]]
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{origin}: names none of the prompt templates {', '.join(TEMPLATES)}; the weights "
            "beside it were trained with another release, or the file is damaged"
        ) from None
