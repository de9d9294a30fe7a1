"""Pages that are one file and need no network: how they are rendered, and their dress."""

from datetime import UTC, datetime
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

STYLE = "cluster/pages/page.css"


def page_environment(is_markdown: bool = False) -> Environment:
    """Returns what renders templates, by paths such as `cluster/pages/page.html.j2`.

    Args:
        is_markdown: Whether the templates are of Markdown; of HTML, all text is escaped.
    """
    environment = Environment(
        loader=FunctionLoader(_read),
        autoescape=not is_markdown,  # noqa: S701
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["style"] = Markup(_read(STYLE))  # noqa: S704
    environment.filters["time"] = format_time
    return environment


def format_time(seconds: float) -> str:
    """Returns a time (Unix seconds) for people; 0 is a time that nobody noted."""
    if not seconds:
        return "time unknown"
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _read(path: str) -> str:
    package, _, name = path.partition("/")
    return files(package).joinpath(name).read_text("utf-8")
