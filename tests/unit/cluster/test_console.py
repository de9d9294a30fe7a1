"""How progress lines reach the terminal."""

import subprocess
import sys

import pytest
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.console import print_line, print_table


def test_a_line_is_printed_exactly_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold]{'a': 1}[/bold] https://example.org " + "x" * 300
    print_line(line)
    assert capsys.readouterr().out == line + "\n"


def test_rich_is_imported_only_to_print() -> None:
    script = "import sys, cluster.console; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_a_number_is_never_cut_and_names_are_folded(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    table = Table(box=SIMPLE_HEAD)
    table.add_column("domain", no_wrap=True)
    for heading in ("users", "interactions so far", "difference"):
        table.add_column(heading, justify="right")
    table.add_row("Arts_Crafts_and_Sewing_of_all_kinds_" * 3, "39,287,123", "1,234", "+0.1 ±0.2")
    print_table(table)
    out = capsys.readouterr().out
    assert "…" not in out
    for whole in ("39,287,123", "1,234", "+0.1 ±0.2", "interactions so far"):
        assert whole in out
    if columns >= 80:
        assert max(map(len, out.splitlines())) <= columns
