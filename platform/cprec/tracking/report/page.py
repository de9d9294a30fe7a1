"""Writes the report of a run: `<run>/report.html`, one page without requests, or Markdown.

It shows whatever records there are, so it can be made while the run is under way.
"""

from collections.abc import Mapping

from markupsafe import Markup

from cluster import storage
from cluster.pages import page_environment
from cprec.config.sections.services import CostSettings
from cprec.runs.records import REPORT_FILE
from cprec.runs.run_records import RunRecords
from cprec.tracking import figures
from cprec.tracking.report.content import Registered, build_document

SCHEDULE = "schedule.svg"
MARKDOWN = "report.md"
HTML_TEMPLATE = "cprec/tracking/report/page.html.j2"
MARKDOWN_TEMPLATE = "cprec/tracking/report/page.md.j2"


def write(
    records: RunRecords, settings: CostSettings, registered: Registered | None = None
) -> dict[str, str]:
    """Writes the page and, beside it, the picture of the schedule into a run's folder.

    Args:
        records: The records of the run.
        settings: The price of an hour.
        registered: The versions of the run's model; None: nobody asked the registry.

    Returns:
        The content of each file by name.
    """
    pictures = figures.draw_all(records)
    pages = {REPORT_FILE: render_html(records, settings, pictures, registered)}
    if pictures:
        pages[SCHEDULE] = next(iter(pictures.values()))
    for file, content in pages.items():
        storage.write_text(storage.join(records.run_uri, file), content)
    return pages


def render_html(
    records: RunRecords,
    settings: CostSettings,
    pictures: Mapping[str, str],
    registered: Registered | None = None,
) -> str:
    """Renders the page; all text of the records is escaped.

    Args:
        records: The records of the run.
        settings: The price of an hour.
        pictures: Its pictures, as SVG by title.
        registered: The versions of the run's model; None: nobody asked the registry.
    """
    environment = page_environment()
    environment.filters["inline_svg"] = inline_svg
    document = build_document(records, registered or Registered(), settings, pictures)
    return environment.get_template(HTML_TEMPLATE).render(document=document)


def inline_svg(picture: str) -> Markup:
    """Returns an SVG as part of a page: without the XML header, which has no place in HTML."""
    return Markup(picture[picture.index("<svg") :])  # noqa: S704  its text was escaped when drawn


def render_markdown(
    records: RunRecords, settings: CostSettings, registered: Registered | None = None
) -> str:
    """Renders the report as Markdown, without pictures. Arguments are those of `render_html`."""
    environment = page_environment(is_markdown=True)
    environment.filters["cell"] = _markdown_cell
    document = build_document(records, registered or Registered(), settings, {})
    return environment.get_template(MARKDOWN_TEMPLATE).render(document=document)


def _markdown_cell(text: str) -> str:
    """Returns a text as the cell of a table, in which nothing is markup."""
    plain = " ".join(text.split())
    for mark in "\\`*_[]<>|$":
        plain = plain.replace(mark, f"\\{mark}")
    return plain
