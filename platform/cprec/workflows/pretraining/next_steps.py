"""What to do with a trained run next: the exact commands, with its recipe and its keys."""

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from cprec.config.cli import option_name
from cprec.config.recipe import Recipe

OF_THE_RUN = ("run", "branch", "continue_from", "corpus_version", "schedule.", "checkpoint.")
"""Keys of this command that the next ones do not repeat: they say how the run was trained."""


def describe_next_steps(
    recipe: Recipe, options: argparse.Namespace, stable_checkpoint: str | None
) -> Iterator[str]:
    """Yields, as aligned lines, what can be done with a trained run.

    Args:
        recipe: The recipe of the run.
        options: The flags of the job that trained it: its recipe file, and the keys that it got.
        stable_checkpoint: Last checkpoint (URI) before annealing; None: there is none to go on
            from.
    """
    domain = next(iter(recipe.data.held_out), "DOMAIN")

    def command(job: str, run: str, *words: str) -> str:
        keys = {key: text for key, text in options.keys.items() if not key.startswith(OF_THE_RUN)}
        given = [word for key, text in keys.items() for word in (option_name(key), text)]
        script = str(Path(sys.argv[0]).with_name(f"{job}.py"))
        recipe_file = [options.recipe] if options.recipe else []
        return shlex.join(["python", script, *recipe_file, *given, "--run", run, *words])

    on_domain = ("--evaluate.domain", domain)
    steps = {
        "compare it with its base": command("evaluate", recipe.run, *on_domain),
        "make it the champion": command("promote", recipe.run, *on_domain),
        f"fine-tune it on {domain}": command("tune_lr", recipe.run, "--finetune.domain", domain),
    }
    if stable_checkpoint is not None:
        new_run = f"{recipe.run}-next"
        steps |= {
            "append a domain to the corpus": command(
                "append_domain", recipe.run, "--data.domains", "NEW"
            ),
            "then train on with it": command("cpt", new_run, "--continue-from", stable_checkpoint),
        }
    width = max(map(len, steps))
    yield "next:"
    for what, line in steps.items():
        yield f"  {what:<{width}}  {line}"
