"""An act says what will happen, with the command that does the same; or why it is not allowed."""

from dataclasses import replace

import pytest

from cprec.console.views.acts import RUN_ACTIONS, describe_joins, list_acts
from cprec.console.views.commands import Commands
from cprec.runs.control.overview import RunOverview, State, build_overview
from cprec.schedule.wsa import Phase
from tests.unit.cprec.runs.control.test_overview import glance


def row(**changes: object) -> RunOverview:
    return replace(build_overview(glance()), **changes)  # type: ignore[arg-type]


def allowed(seen: RunOverview) -> set[str]:
    return {act.action for act in list_acts(seen, "c") if act.allowed}


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (row(), {"hold", "anneal", "stop"}),
        (row(hold=True), {"release", "anneal", "stop"}),
        (row(state=State.WAITING, hold=True), {"release", "anneal", "stop"}),
        (row(phase=Phase.ANNEALING), {"stop"}),
        *((row(state=state), set()) for state in State if state not in ("training", "waiting")),
    ],
)
def test_only_what_a_run_would_do_is_allowed(seen: RunOverview, expected: set[str]) -> None:
    assert allowed(seen) == expected
    assert all(act.effect for act in list_acts(seen, "c"))


def test_an_effect_names_the_samples_that_it_concerns() -> None:
    acts = {act.action: act for act in list_acts(row(hold=True), "control --run=trunk")}
    assert "1,000 samples" in acts["release"].effect
    assert "up to 300 domain-specific samples" in acts["anneal"].effect
    assert [a for a in RUN_ACTIONS if acts[a].is_final] == ["anneal"]
    assert acts["stop"].command == "control --run=trunk stop"


def test_an_append_says_where_it_joins() -> None:
    rows = [
        row(run="open", corpus="c"),
        row(run="late", corpus="c", phase=Phase.ANNEALING),
        row(run="other", corpus="d"),
        row(run="over", corpus="c", state=State.DONE),
    ]
    first, second = describe_joins(rows, "c")
    assert "open takes it up" in first
    assert "at sample 700" in first
    assert "late is annealing" in second
    assert describe_joins([], "c") == ["no run below this storage is training on this corpus now"]


def test_commands_are_those_of_the_console_without_its_own_flags() -> None:
    given = ["my recipe.yaml", "--as", "Ada", "--seed", "0", "--as=Bob", "--dry-run"]
    given += ["--console.port", "1", "--console.host=::1"]
    commands = Commands.from_command_line(given)
    assert commands.arguments == ("my recipe.yaml", "--seed", "0")
    assert commands.control("a b") == (
        "python jobs/control.py 'my recipe.yaml' --seed 0 '--run=a b'"
    )
    assert commands.anneal_from("s3://b/c").endswith("--seed 0 --from=s3://b/c")
    assert commands.continue_from("t", "u").endswith("--run=t-next --continue-from=u")
