"""What to do after a job: the exact commands, with its recipe and its keys."""

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from cprec.config.cli import option_name
from cprec.config.recipe import Recipe

OF_THE_RUN = ("run", "branch", "continue_from", "corpus_version", "schedule.", "checkpoint.")
"""Keys of this command that the next ones do not repeat: they say how the run was trained."""


def after_build(recipe: Recipe, options: argparse.Namespace) -> Iterator[str]:
    """Yields, as aligned lines, what can be done with a corpus that was built.

    Args:
        recipe: The recipe.
        options: The flags of the job.
    """
    run = recipe.run
    return _describe(
        {
            "look at it, and for leakage": _command(options, "build_corpus", None, "--inspect"),
            "see what a run would do": _command(options, "cpt", run, "--dry-run"),
            "train on it": _command(options, "cpt", run),
        }
    )


def after_pretraining(
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
    run, on_domain = recipe.run, ("--evaluate.domain", domain)
    steps = {
        "compare it with its base": _command(options, "evaluate", run, *on_domain),
        "make it the champion": _command(options, "promote", run, *on_domain),
        f"fine-tune it on {domain}": _command(options, "tune_lr", run, "--finetune.domain", domain),
    }
    if stable_checkpoint is not None:
        steps |= {
            "append a domain to the corpus": _command(
                options, "append_domain", run, "--data.domains", "NEW"
            ),
            "then train on with it": _command(
                options, "cpt", f"{run}-next", "--continue-from", stable_checkpoint
            ),
        }
    return _describe(steps)


def after_evaluation(
    recipe: Recipe, options: argparse.Namespace, domain: str, has_candidate: bool
) -> Iterator[str]:
    """Yields, as aligned lines, what can be done after models were compared.

    Args:
        recipe: The recipe.
        options: The flags of the job.
        domain: The domain that they were compared on.
        has_candidate: Whether the candidate of the run was among them.
    """
    run = recipe.run
    steps = {}
    if has_candidate:
        steps = {
            "make it the champion": _command(options, "promote", run, "--evaluate.domain", domain),
            "ask it for a ranking": _command(
                options,
                *("recommend", run, "--model", "candidate"),
                *("--history", "TITLE", "--candidates", "FILE"),
            ),
        }
    on_domain = ("--finetune.domain", domain)
    steps[f"fine-tune on {domain}"] = _command(options, "tune_lr", run, *on_domain)
    return _describe(steps)


def _command(options: argparse.Namespace, job: str, run: str | None, *words: str) -> str:
    """Returns a command with the recipe and keys of this one, as far as words set no others.

    It names the run if it is of one.
    """
    keys = {
        option_name(key): text
        for key, text in options.keys.items()
        if not key.startswith(OF_THE_RUN)
    }
    given = [part for name, text in keys.items() if name not in words for part in (name, text)]
    script = str(Path(sys.argv[0]).with_name(f"{job}.py"))
    recipe_file = [options.recipe] if options.recipe else []
    of_run = [] if run is None else ["--run", run]
    return shlex.join(["python", script, *recipe_file, *given, *of_run, *words])


def _describe(steps: Mapping[str, str]) -> Iterator[str]:
    width = max(map(len, steps))
    yield "next:"
    for what, line in steps.items():
        yield f"  {what:<{width}}  {line}"
