"""How progress lines reach the terminal."""

import subprocess
import sys

import pytest

from cluster.console import print_line


def test_a_line_is_printed_exactly_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold]{'a': 1}[/bold] https://example.org " + "x" * 300
    print_line(line)
    assert capsys.readouterr().out == line + "\n"


def test_rich_is_imported_only_to_print() -> None:
    script = "import sys, cluster.console; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
