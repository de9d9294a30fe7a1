"""What the report of a run says, for somebody who was not there. Pure."""

import json
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import RecipeError
from cluster.pages import format_time
from corpus.sampling.source import Source, SourceKind
from cprec.config.recipe_file import parse_yaml
from cprec.config.sections.services import CostSettings
from cprec.runs.checkpoint import ADAPTER
from cprec.runs.events import CheckpointSaved, RunFinished
from cprec.runs.run_records import RunRecords
from cprec.schedule.objectives import describe_fractions
from cprec.tracking.event_words import describe_events
from cprec.tracking.lineage_graph import Aliases, build_lineage_graph, find_kind, select_related
from cprec.tracking.registry import DECISION_TAG, Version
from cprec.tracking.report.cost import describe_cost, measure_cost
from cprec.tracking.report.document import (
    NONE,
    Cell,
    Document,
    Section,
    Table,
    Tone,
    count,
    measure,
    minutes,
    row,
)
from cprec.tracking.report.evaluations import describe_evaluations
from cprec.tracking.report.lineage_picture import draw_lineage

ADAPTERS = {
    "lora": "a low-rank adapter (LoRA)",
    "full": "every weight",
    "partial": "a part of its weights",
    "prompt": "none of its weights, but a soft prompt before every prompt",
}
"""How the page calls what is trained of a base."""

EVENT_TONES: Mapping[str, Tone] = {
    "plain": "strong",
    "warning": "strong",
    "good": "good",
    "bad": "bad",
}


@dataclass(frozen=True)
class Registered:
    """The versions of the run's model and of those fine-tuned from it, and their aliases.

    Each version comes after those that it may go on from.
    """

    versions: Sequence[Version] = ()
    aliases: Aliases = field(default_factory=dict)


def build_document(
    records: RunRecords,
    registered: Registered,
    settings: CostSettings,
    pictures: Mapping[str, str],
) -> Document:
    """Builds the report of a run, from whatever records there are.

    Args:
        records: The records of the run.
        registered: The versions of its model.
        settings: The price of an hour.
        pictures: Its pictures, as SVG by title.
    """
    cost = measure_cost(records)
    own = [version for version in registered.versions if version.run == records.run_uri]
    recipe = _read_recipe(records.recipe)
    sections = [
        _describe_training(records, own, recipe),
        *describe_evaluations(records.name, records.comparisons),
        *_describe_forgetting(records),
        describe_cost(records, cost, settings),
        *_describe_lineage(records, registered, own),
        *_describe_use(records, own, recipe),
        Section("How the training went", pictures=list(pictures.items())),
        _describe_events(records),
    ]
    return Document(
        title=records.name,
        summary=list(_summarise(records, own)),
        facts=list(_list_facts(records, cost.worker_hours, cost.has_gpus)),
        sections=[section for section in sections if section != Section(section.name)],
        recipe=records.recipe,
        made=records.events[-1].time if records.events else 0.0,
    )


def _read_recipe(text: str) -> Mapping[str, Any]:
    """Reads a resolved recipe as plain data; nothing of it where somebody damaged it."""
    try:
        return parse_yaml(text, "resolved.yaml")
    except RecipeError:
        return {}


def _summarise(records: RunRecords, own: Sequence[Version]) -> Iterator[str]:
    """Yields a few sentences on the run."""
    names = _domain_names(records)
    if not records.steps:
        yield "No step was trained yet."
        return
    is_done = any(isinstance(event, RunFinished) for event in records.events)
    trained = f"{records.steps[-1].end:,} samples"
    if records.run_plan is not None and not is_done:
        trained += f" of {records.run_plan.plan.total_samples:,}"
    domains = f" of {', '.join(names)}" if names else ""
    yield (
        f"A language model was pre-trained on {trained}{domains}, to rank what a user of a shop "
        f"takes next; the training {'is finished' if is_done else 'is under way, or stopped'}."
    )
    if own:
        shown = ", ".join(f"version {v.number} of {v.model}" for v in own)
        yield f"Its checkpoints are registered as {shown}."
    if records.audit is not None:
        bad = records.audit.missing or records.audit.repeated
        yield (
            f"The audit found {records.audit.missing:,} samples missing and "
            f"{records.audit.repeated:,} repeated."
            if bad
            else "The audit found every planned sample trained exactly once."
        )


def _domain_names(records: RunRecords) -> list[str]:
    names = [name for step in records.steps[:1] for name in step.sources]
    names += [name for step in records.steps for name in step.sources]
    return [
        source.removeprefix(f"{SourceKind.DOMAIN.value}/").partition("@")[0]
        for source in dict.fromkeys(names)
        if source.startswith(f"{SourceKind.DOMAIN.value}/")
    ]


def _list_facts(
    records: RunRecords, worker_hours: float, has_gpus: bool
) -> Iterator[tuple[str, str]]:
    steps = records.steps
    if not steps:
        return
    yield "Samples", count(steps[-1].end)
    yield "Steps", count(len(steps))
    yield "Tokens", count(sum(step.tokens for step in steps))
    yield "Time of steps", minutes(sum(step.step_s for step in steps))
    yield "GPU-hours" if has_gpus else "Worker-hours", f"{worker_hours:,.2f}"
    yield "Loss at the end", f"{steps[-1].loss:.4f}"
    best = _find_best(records)
    if best is not None:
        yield best
    if measured := records.perplexities:
        yield "Perplexity of the text", f"{measured[0][1]:.4g} → {measured[-1][1]:.4g}"
    by_objective: Counter[str] = Counter()
    for step in steps:
        by_objective.update(step.objectives or {})
    if by_objective:
        yield "Objectives", describe_fractions(by_objective)
    if dropped := sum(step.dropped_titles for step in steps):
        yield "Titles that did not fit", count(dropped)


def _find_best(records: RunRecords) -> tuple[str, str] | None:
    """Returns HR@1 of the last model of the newest comparison of scored candidates.

    That is one of the test split, without a choice of days.
    """
    scored = [
        c
        for c in records.comparisons
        if c["mode"] == "score" and c.get("split", "test") == "test" and not c["days"]
    ]
    if not scored:
        return None
    newest = scored[-1]["rows"][-1]
    hr1 = (newest["metrics"]["hr"] or {}).get("1")
    name = newest.get("model", newest["name"])
    return (f"HR@1 of {name}, {scored[-1]['domain']}", measure(hr1))


def _describe_training(
    records: RunRecords, own: Sequence[Version], recipe: Mapping[str, Any]
) -> Section:
    """Returns the section on what was trained, on what, and whether all of it was."""
    model, tags = recipe.get("model") or {}, own[-1].tags if own else {}
    plan = records.run_plan
    facts = [
        ("Base", tags.get("base") or model.get("base")),
        ("Its revision", tags.get("base_revision")),
        ("What was trained of it", ADAPTERS.get(str(model.get("adapter")))),
        ("Goes on from", plan.parent if plan and plan.parent else None),
        ("Corpus", tags.get("corpus") or recipe.get("corpus")),
        ("Newest corpus version", str(plan.version) if plan else None),
        ("Prompt template", plan.prompt_template if plan else None),
        ("Phases", _describe_phases(records)),
    ]
    what = Table(
        ["", ""], [row(name, str(value)) for name, value in facts if value], texts=frozenset({1})
    )
    return Section("What was trained, on what", tables=[what, *_list_sources(records)])


def _describe_phases(records: RunRecords) -> str | None:
    if records.run_plan is None:
        return None
    wsa = records.run_plan.plan.wsa
    return (
        f"warmup to sample {wsa.warmup_end:,}, stable to {wsa.stable_end:,}, annealing to "
        f"{wsa.annealing_end:,}; learning rate {wsa.lr_min:.3g} to {wsa.lr_max:.3g}"
    )


def _list_sources(records: RunRecords) -> Iterator[Table]:
    """Yields the samples of each source: as the audit counted them, else those of the steps."""
    header = ["Source", "Kind", "Corpus version"]
    if (audit := records.audit) is None:
        counts: Counter[str] = Counter()
        for step in records.steps:
            counts.update(step.sources)
        rows = []
        for stream, samples in sorted(counts.items()):
            source, _, version = stream.partition("@")
            rows.append(row(*_name_source(source), version or NONE, count(samples)))
        if rows:
            yield Table([*header, "Trained"], rows, "Samples so far", frozenset({1}))
        return
    entries = [
        (*_name_source(source), version, counts_of)
        for source, versions in audit.sources.items()
        for version, counts_of in versions.items()
    ]
    rows = [
        row(
            *texts,
            count(counts_of.planned),
            count(counts_of.trained),
            *(
                Cell(count(fault), "bad" if fault else "good")
                for fault in (counts_of.missing, counts_of.repeated)
            ),
        )
        for *texts, counts_of in [*entries, ("All", "", "", audit)]
    ]
    yield Table(
        [*header, "Planned", "Trained", "Missing", "Repeated"],
        rows,
        "Audit: samples planned against those trained. Missing and repeated must be 0.",
        frozenset({1}),
    )


def _name_source(text: str) -> tuple[str, str]:
    """Returns name and kind of a source, for people."""
    try:
        source = Source.parse(text)
    except ValueError:
        return text, NONE
    return source.name or "all domains", source.kind.value


def _describe_forgetting(records: RunRecords) -> Iterator[Section]:
    """Yields what became of the perplexity of the plain text, where it was measured."""
    tables = []
    if measured := records.perplexities:
        first = measured[0][1]
        rows = [
            row(f"{samples:,}", f"{value:.4g}", f"{value / first - 1:+.1%}")
            for samples, value in _thin(measured)
        ]
        tables.append(Table(["Samples", "Perplexity", "Change"], rows, "While it was trained"))
    found = {
        entry["name"]: entry["perplexity"]
        for comparison in records.comparisons
        for entry in comparison["rows"]
        if entry.get("perplexity")
    }
    if found:
        base = found.get("base")
        rows = [
            row(name, f"{value:.4g}", f"{value / base - 1:+.1%}" if base else NONE)
            for name, value in found.items()
        ]
        tables.append(Table(["Model", "Perplexity", "Against the base"], rows, "By evaluation"))
    if tables:
        text = (
            "The perplexity of a plain text that has nothing to do with the task (evaluate.text): "
            "what it rises by, the model has forgotten."
        )
        yield Section("What it forgot", [text], tables)


def _thin(points: Sequence[tuple[int, float]], most: int = 8) -> list[tuple[int, float]]:
    """Returns some of the points, the first and the last among them."""
    step = max(1, -(-len(points) // most))
    return [*points[:-1:step], points[-1]]


def _describe_lineage(
    records: RunRecords, registered: Registered, own: Sequence[Version]
) -> Iterator[Section]:
    """Yields where the versions of the run come from, and what the gate said of them."""
    if not own:
        return
    related = select_related(registered.versions, records.run_uri)
    graph = build_lineage_graph(related, registered.aliases)
    rows = []
    for version in related:
        aliases = registered.aliases.get(version.model, {})
        names = ", ".join(name for name, number in aliases.items() if number == version.number)
        decisions = sorted(tag for tag in version.tags if tag.startswith(DECISION_TAG))
        rows.append(
            row(
                f"{version.model} {version.number}",
                find_kind(version),
                posixpath.basename(version.run),
                version.tags.get("corpus_version") or NONE,
                names or NONE,
                _describe_decision(version.tags[decisions[-1]]) if decisions else "not asked",
            )
        )
    header = ["Version", "Kind", "Run", "Corpus version", "Aliases", "The gate's last word"]
    table = Table(header, rows, texts=frozenset({1, 2, 4, 5}))
    yield Section("Lineage", tables=[table], pictures=[("", draw_lineage(graph))])


def _describe_decision(text: str) -> str:
    try:
        decision = json.loads(text)
        verdict = "promoted" if decision.get("promote") else "not promoted"
        by = f", asked by {decision['by']}" if decision.get("by") else ""
        return f"{verdict}: {decision.get('reason', '')}{by}"
    except (ValueError, AttributeError):
        return NONE


def _describe_use(
    records: RunRecords, own: Sequence[Version], recipe: Mapping[str, Any]
) -> Iterator[Section]:
    """Yields how the adapter is loaded."""
    saved = [e for e in records.events if isinstance(e, CheckpointSaved | RunFinished)]
    if not saved:
        return
    adapter = posixpath.join(saved[-1].checkpoint, ADAPTER)
    base = (own[-1].tags.get("base") if own else None) or str(
        (recipe.get("model") or {}).get("base", "BASE")
    )
    model = f"models:/{own[-1].model}/{own[-1].number}" if own else saved[-1].checkpoint
    python = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, {adapter!r})
tokenizer = AutoTokenizer.from_pretrained({base!r})"""
    kind = (recipe.get("model") or {}).get("adapter")
    export = (
        "--adapter --out FOLDER" if kind == "prompt" else "--out FOLDER  # base and adapter in one"
    )
    shell = (
        f"python jobs/recommend.py --model {model} --candidates titles.txt --history 'oak lamp'\n"
        f"python jobs/merge.py --model {model} {export}"
    )
    card = "Beside it stands README.md, its model card, with the prompt that it was trained on."
    if kind in ("full", "partial"):
        text = f"The checkpoint holds {ADAPTERS[kind]}. {card}"
        yield Section("How to use it", [text], code=[("sh", shell)])
        return
    text = f"The adapter is a PEFT directory for its base. {card}"
    yield Section("How to use it", [text], code=[("python", python), ("sh", shell)])


def _describe_events(records: RunRecords) -> Section:
    """Returns what happened, in words."""
    rows = [
        row(
            format_time(words.time),
            count(words.samples),
            Cell(words.title, EVENT_TONES[words.tone]),
            f"{words.text} (by {words.by})" if words.by else words.text,
        )
        for words in describe_events(records.events)
    ]
    table = Table(["Time", "Samples", "What happened", ""], rows, texts=frozenset({2, 3}))
    return Section("Events", tables=[table] if rows else [])
