"""The page that shows the OpenAPI document to people: plain HTML, without any script. Pure.

FastAPI's own page loads its scripts from a public network, so it is empty without one, and tells a
third party who looks.
"""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
"""Lets a browser load nothing for the page."""


def render_docs(document: Mapping[str, Any]) -> str:
    """Renders the page.

    Args:
        document: The OpenAPI document.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["type"] = describe_type
    template = files("cprec.serving").joinpath("docs_page.html.j2").read_text()
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return environment.from_string(template).render(
        info=document["info"], operations=operations, schemas=document["components"]["schemas"]
    )


def describe_type(schema: Mapping[str, Any]) -> str:
    """Returns the type that a JSON schema stands for, such as `list of string or null`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[-1]
    if "anyOf" in schema:
        return " or ".join(describe_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {describe_type(schema['items'])}"
    return str(schema.get("type", "anything"))
