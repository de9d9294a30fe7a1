"""Reproduces the paper's tables and figures: plan, compute what is missing, render all of it.

Below `<storage>/reproduction/`:

    steps/<name>-<digest>/result.json    the result of each step
    runs/                                what the jobs of the steps leave
    index.html                           all tables and figures, made from the results alone
    tables/<name>.md, tables/<name>.tex  each table
    figures/<name>.svg                   each figure
    results.parquet                      each number
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.console import Say
from cluster.storage import join, write_bytes, write_text
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import to_yaml
from cprec.reproduction import figures, rendering
from cprec.reproduction.execution import Executor, check_corpus
from cprec.reproduction.graph import Graph, Step, compute_missing
from cprec.reproduction.models import Artefact
from cprec.reproduction.progress import ReproductionProgress, format_time
from cprec.reproduction.rendering import Rendered
from cprec.reproduction.results import CorpusContent, KeptResults, StepResult, reproduction_folder
from cprec.reproduction.steps import Kind, Task, plan_tasks, select_artefacts
from cprec.reproduction.tables import Answers, artefact_cells, order_cells, read_predictions

PAGE = "index.html"
RESULTS = "results.parquet"


@dataclass(frozen=True)
class Reproduction:
    """What is to be reproduced, planned and not started.

    Attributes:
        recipe: The recipe.
        folder: Where everything goes.
        wanted: The tables and figures.
        graph: Their steps.
        tasks: What each step is about, by name.
        kept: The results of steps.
    """

    recipe: Recipe
    folder: str
    wanted: Sequence[Artefact]
    graph: Graph
    tasks: Mapping[str, Task]
    kept: KeptResults


@dataclass(frozen=True)
class Reproduced:
    """What a reproduction has left.

    Attributes:
        page: URI of the page; None where nothing is computed yet.
        missing: Names of the steps that are not computed, because the budget ended.
    """

    page: str | None
    missing: Sequence[str]


def plan_reproduction(recipe: Recipe, only: Sequence[str]) -> Reproduction:
    """Plans the steps of the named tables and figures, or of all. Writes nothing.

    Raises:
        RecipeError: A name is unknown, or the recipe lacks domains for it.
    """
    wanted = select_artefacts(recipe, only)
    graph, tasks = plan_tasks(recipe, wanted)
    folder = reproduction_folder(recipe)
    return Reproduction(recipe, folder, wanted, graph, tasks, KeptResults(folder, graph))


def describe(reproduction: Reproduction, say: Say) -> None:
    """Checks the data, and says which steps are done, and which are to do. Writes nothing."""
    steps = reproduction.graph.steps
    results = {step.name: reproduction.kept.find(step) for step in steps}
    check_corpus(reproduction.recipe, results[Kind.CORPUS], say)
    for step in steps:
        result = results[step.name]
        state = "to do" if result is None else f"done in {format_time(result.seconds)}"
        say(f"  {reproduction.kept.run_name(step)}: {state}")
    done = sum(result is not None for result in results.values())
    say(f"{done} of {len(steps)} steps are done, in {reproduction.folder}")


def reproduce(reproduction: Reproduction, budget_minutes: float | None, say: Say) -> Reproduced:
    """Computes the steps that have no result, one after the other, and renders all results.

    Args:
        reproduction: The plan.
        budget_minutes: Time after which no further step is started; None: all are.
        say: Takes lines of progress, where there is no terminal.
    """
    graph, kept, tasks = reproduction.graph, reproduction.kept, reproduction.tasks
    began = time.monotonic()

    def may_start() -> bool:
        return budget_minutes is None or time.monotonic() - began < 60 * budget_minutes

    with ReproductionProgress([step.name for step in graph.steps], say) as progress:

        def find(step: Step) -> StepResult | None:
            result = kept.find(step)
            if result is not None:
                progress.keep(step.name, result.seconds)
            return result

        folder = reproduction.folder
        with Executor(reproduction.recipe, folder, kept, progress.say) as executor:

            def compute(step: Step, parents: Mapping[str, StepResult]) -> StepResult:
                progress.start(step.name)
                result = executor.compute(tasks[step.name], parents)
                progress.end(step.name, result.seconds)
                return result

            try:
                results = compute_missing(graph, find, compute, may_start)
            finally:
                # After an error too: what is computed is worth a page.
                page = write_pages(reproduction)
    missing = [step.name for step in graph.steps if step.name not in results]
    return Reproduced(page, missing)


def write_pages(reproduction: Reproduction) -> str | None:
    """Writes the wanted tables and figures, and all others that are computed.

    Returns:
        The URI of the page; None where nothing is computed yet.
    """
    recipe, folder = reproduction.recipe, reproduction.folder
    whole = plan_reproduction(recipe, ())
    kept = {step.name: whole.kept.find(step) for step in whole.graph.steps}
    results = {name: result for name, result in kept.items() if result is not None}
    if not results:
        return None
    answers = Answers(results, read_predictions)
    rendered = []
    for artefact in whole.wanted:
        steps = plan_tasks(recipe, [artefact])[0].steps
        missing = [step.name for step in steps if step.name not in results]
        if missing and artefact not in reproduction.wanted:
            continue
        cells = artefact_cells(artefact, answers)
        picture = figures.draw(artefact, cells) if artefact.is_figure else None
        order = order_cells(artefact, answers)
        rendered.append(Rendered(artefact, cells, missing, picture, order))
    for item in rendered:
        name = item.artefact.name
        write_text(join(folder, "tables", f"{name}.md"), rendering.to_markdown(item))
        write_text(join(folder, "tables", f"{name}.tex"), rendering.to_latex(item))
        if item.picture is not None:
            write_text(join(folder, "figures", f"{name}.svg"), item.picture)
    cells = [cell for item in rendered for cell in item.cells]
    write_bytes(join(folder, RESULTS), rendering.to_parquet(cells))
    page = join(folder, PAGE)
    summary = _summary(results, len(kept))
    write_text(page, rendering.to_page(recipe.run, summary, rendered, to_yaml(recipe)))
    return page


def _summary(results: Mapping[str, StepResult], steps: int) -> list[str]:
    """Returns the facts below the title of the page."""
    seconds = sum(result.seconds for result in results.values())
    facts = [f"{len(results)} of {steps} steps", f"{seconds / 60:.0f} minutes of computing"]
    corpus = results.get(Kind.CORPUS)
    if corpus is not None and isinstance(corpus.content, CorpusContent):
        facts.append(f"version {corpus.content.version} of {corpus.content.uri}")
    return facts
