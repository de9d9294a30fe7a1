"""The comparisons of a run as tables: models with intervals and p, slices, Valid Ratio. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.pages import format_time
from cprec.evaluation.metrics import HISTORY_SLICES
from cprec.evaluation.significance import wilson_interval
from cprec.runs.comparisons import newest_by_name
from cprec.tracking.console_tables import CATALOGUE_COLUMNS, COLUMNS
from cprec.tracking.report.document import NONE, Cell, Interval, Section, Table, measure, row

MODES = {
    "score": "scored candidates",
    "generate": "generated answers",
    "constrained": "generated answers, restricted to the candidates",
    "catalogue": "the whole catalogue ranked, by language models what was retrieved of it",
}
"""How the page calls each form of evaluation."""

ALPHA = 0.05
"""A difference whose p is below stands out."""

MAX_EARLIER = 50
"""Earlier comparisons that are listed, the newest."""


def describe_evaluations(run: str, comparisons: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Returns the sections on how models rank, and on what they forgot.

    Args:
        run: Name of the run.
        comparisons: All comparisons that it has kept, the oldest first.
    """
    if not comparisons:
        todo = f"No model of this run was compared yet: python jobs/evaluate.py --run {run}"
        return [Section("How well it ranks", [todo])]
    newest = newest_by_name(comparisons)
    shown = [table for comparison in newest for table in _compare(comparison)]
    ranks = Section(
        "How well it ranks",
        [
            "HR@k is the fraction of samples whose next item is among the first k of the ranking; "
            "NDCG@k counts an item more, the higher it stands. "
            "The bar is the 95 % interval of HR@1 (Wilson), its tick the value, and the thin line "
            "what a random choice would reach.",
            "Differences are to the first model of a comparison, with a 95 % interval and p of a "
            "paired t-test over users; p (Holm) is corrected for the domains of this run. "
            f"Bold: p below {ALPHA:g}.",
        ],
        shown,
    )
    sections = [ranks]
    earlier = [c for c in reversed(comparisons) if c not in newest]
    if earlier:
        sections.append(Section("Earlier evaluations", tables=[_list_earlier(earlier)]))
    return sections


def _compare(comparison: Mapping[str, Any]) -> Iterator[Table]:
    """Yields the tables of one comparison."""
    yield _main_table(comparison)
    if any(entry.get("against") for entry in comparison["rows"]):
        yield _difference_table(comparison)
    if any(row.get("metrics", {}).get("slices") for row in comparison["rows"]):
        yield _slices_table(comparison)


def _main_table(comparison: Mapping[str, Any]) -> Table:
    mode = comparison["mode"]
    columns = CATALOGUE_COLUMNS if mode == "catalogue" else COLUMNS
    generated = mode in ("generate", "constrained")
    header = ["Model", "Samples", "95 % interval of HR@1", "", *columns]
    header += ["Valid", "Valid (LLaRA)"] * generated
    top = max(_interval_of(r)[1] for r in comparison["rows"])
    end = min(1.0, max(1.15 * top, 2 * (comparison.get("chance") or 0.0), 0.01))
    days = f", {comparison['days']}" if comparison.get("days") else ""
    return Table(
        header,
        [
            _main_row(entry, list(columns.values()), generated, end, comparison.get("chance"))
            for entry in comparison["rows"]
        ],
        f"{comparison['name']}, {format_time(comparison['time'])}: {comparison['domain']}, "
        f"{comparison['split']} split{days}, {MODES[mode]}",
    )


def _main_row(
    entry: Mapping[str, Any],
    columns: Sequence[tuple[str, str]],
    generated: bool,
    end: float,
    chance: float | None,
) -> list[Cell]:
    metrics = entry["metrics"]
    low, high = _interval_of(entry)
    hr1 = (metrics["hr"] or {}).get("1")
    picture = None if hr1 is None else Interval(low, hr1, high, end, chance)
    valid = metrics.get("valid_ratio") or {}
    return row(
        _name(entry),
        f"{metrics['n']:,}",
        Cell("" if hr1 is None else f"{low:.4f} … {high:.4f}"),
        Cell("", interval=picture),
        *(measure((metrics.get(kind) or {}).get(k)) for kind, k in columns),
        *([measure(valid.get("exact")), measure(valid.get("llara"))] if generated else []),
    )


def _name(entry: Mapping[str, Any]) -> str:
    """Returns a model as it was asked for, and what that was."""
    is_same = entry["name"] == entry.get("model", entry["name"])
    return str(entry["name"]) if is_same else f"{entry['name']} ({entry['model']})"


def _difference_table(comparison: Mapping[str, Any]) -> Table:
    """Returns how each model differs from the first, and whether that may be chance."""
    reference, *others = comparison["rows"]
    rows = [
        row(_name(entry), *_test(entry, entry["against"])) for entry in others if entry["against"]
    ]
    against = f"{comparison['measure']} against {_name(reference)}"
    return Table([against, "Difference", "95 % interval", "p", "p (permutation)", "p (Holm)"], rows)


def _test(entry: Mapping[str, Any], against: Mapping[str, Any]) -> Iterator[Cell]:
    low, high = against.get("low"), against.get("high")
    yield Cell(f"{against['difference']:+.4f}", "strong" if against["p"] < ALPHA else "")
    yield Cell(NONE if low is None or high is None else f"{low:+.4f} … {high:+.4f}")
    for p in (against["p"], entry.get("permutation_p"), entry.get("holm_p")):
        if p is None:
            yield Cell(NONE)
        else:
            yield Cell(f"{p:.2g}", "strong" if p < ALPHA else "")


def _interval_of(entry: Mapping[str, Any]) -> tuple[float, float]:
    metrics = entry["metrics"]
    hr1 = (metrics["hr"] or {}).get("1")
    return wilson_interval(hr1, metrics["n"]) if hr1 is not None and metrics["n"] else (0.0, 0.0)


def _slices_table(comparison: Mapping[str, Any]) -> Table:
    """Returns HR@1 by length of history."""
    names = [
        f"{name} ({first:.0f}{f' to {stop - 1:.0f}' if stop != float('inf') else ' and more'})"
        for name, (first, stop) in HISTORY_SLICES.items()
    ]
    rows = []
    for entry in comparison["rows"]:
        slices = entry.get("metrics", {}).get("slices", {})
        cells = []
        for name in HISTORY_SLICES:
            of_slice = slices.get(name) or {}
            cells += [measure((of_slice.get("hr") or {}).get("1")), f"{of_slice.get('n', 0):,}"]
        rows.append(row(entry["name"], *cells))
    header = ["HR@1 by length of history", *(part for name in names for part in (name, "Samples"))]
    return Table(header, rows)


def _list_earlier(comparisons: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        row(
            format_time(c["time"]),
            c["domain"],
            str(c["split"]),
            MODES[c["mode"]],
            ", ".join(
                f"{r['name']} {measure((r['metrics']['hr'] or {}).get('1'))}" for r in c["rows"]
            ),
        )
        for c in comparisons[:MAX_EARLIER]
    ]
    header = ["Made", "Domain", "Split", "Mode", "HR@1"]
    left_out = len(comparisons) - len(rows)
    note = f"{left_out:,} older ones are in evaluation/." if left_out else ""
    caption = "Made before those above, of the same names"
    return Table(header, rows, caption, frozenset(range(5)), note)
