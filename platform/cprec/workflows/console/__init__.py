"""Serves the console: a web page that shows runs and models, and steers them."""

import asyncio
import os
import secrets
import socket
from collections.abc import MutableMapping, Sequence

from cluster.console import Say
from cluster.storage import absolute_uri, exists, is_remote
from cprec.config.recipe import Recipe
from cprec.console.http_app import build_app
from cprec.console.site import Site
from cprec.console.views.commands import Commands
from cprec.serving.access import App, read_token
from cprec.serving.http_server import build_server, describe_address, listen

TOKEN_VARIABLE = "CPREC_CONSOLE_TOKEN"  # noqa: S105  the name of a variable
GRACE_S = 2
"""Seconds that open pages get when the console ends; they ask again by themselves."""


def read_or_make_token(environment: MutableMapping[str, str] = os.environ) -> tuple[str, bool]:
    """Returns the token of the console, and whether it was made just now because none was given.

    Raises:
        RecipeError: One was given that is too short, or cannot be read.
    """
    if environment.get(TOKEN_VARIABLE) or environment.get(f"{TOKEN_VARIABLE}_FILE"):
        return read_token(environment, TOKEN_VARIABLE), False
    return secrets.token_urlsafe(32), True


def describe_console(recipe: Recipe) -> str:
    """Returns what the console would show, for people."""
    runs = absolute_uri(recipe.storage)
    # An object store that cannot be reached is told on the page, which goes on looking.
    absent = "" if is_remote(runs) or exists(runs) else " (nothing is there yet)"
    return (
        f"the runs below {runs}{absent}, the models {recipe.mlflow.model}, "
        f"the domains of {recipe.data.root_paths}"
    )


def run_console(
    recipe: Recipe, arguments: Sequence[str], name: str, say: Say, token: str, is_new: bool
) -> None:
    """Serves until SIGINT or SIGTERM, which is raised as KeyboardInterrupt at the end.

    Args:
        recipe: Storage, corpus, data root, registry, and the section `console`.
        arguments: The arguments of the command line, for the commands that the console shows.
        name: Who does what is done by click, until a browser gives another name.
        say: Takes a line for each thing that was done.
        token: What browsers must send.
        is_new: Whether nobody knows the token yet, so that it is printed.

    Raises:
        RecipeError: The address cannot be used.
    """
    site = Site(recipe, Commands.from_command_line(arguments), say)
    with listen(recipe.console, "console") as listener:
        address = describe_address(listener)
        # Behind the #, so that no browser sends it to anybody, and no log keeps it.
        say(f"console: {address}/{f'#token={token}' if is_new else ''}")
        asyncio.run(_serve(site, build_app(site, token, name), listener))


async def _serve(site: Site, app: App, listener: socket.socket) -> None:
    first_look = asyncio.create_task(site.runs.look_ahead())
    try:
        await build_server(app, GRACE_S).serve(sockets=[listener])
    finally:
        first_look.cancel()
        await site.ranking.end()
        await site.jobs.end_all()
