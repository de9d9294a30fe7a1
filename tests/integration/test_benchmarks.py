"""Benchmarks import what exists; that of the GPU runs to its end on a CPU, at toy size."""

import importlib
import json
import os
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.integration import jobs

BENCHMARKS = sorted(path.stem for path in (jobs.ROOT / "benchmarks").glob("*.py"))
ABSENT = ("ray", "deltalake", "mlflow", "botocore", "s3fs", "aiohttp", "polars", "faiss")
"""Libraries that a bare machine with a GPU does not have."""
BARE = """
import builtins, runpy, sys

real = builtins.__import__
ours = ("cprec", "cluster", "corpus", "support", "__main__")

def without(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "").split(".")[0]
    if level == 0 and importer in ours and name.split(".")[0] in ABSENT:
        raise ModuleNotFoundError(name)
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = without
sys.argv = sys.argv[1:]
sys.path.insert(0, "benchmarks")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def bare_script(absent: Sequence[str]) -> str:
    """Returns a script that runs another one where our packages cannot import some libraries."""
    return BARE.replace("ABSENT", repr(tuple(absent)))


def test_the_gpu_benchmark_runs_at_toy_size_on_a_bare_machine(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(bare_script(ABSENT))
    environment = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        "OMP_NUM_THREADS": "1",
    }
    cases = ["7b-bf16", "7b-fp8", "135m-full", "135m-scoring"]
    options = ["--toy", "--only", *cases, "--out", str(tmp_path / "figures.json")]
    output = jobs.run_python(
        str(tmp_path / "bare.py"),
        "benchmarks/gpu.py",
        *options,
        environment=environment,
        timeout_s=300,
    )
    figures = json.loads((tmp_path / "figures.json").read_text())["cases"]
    assert set(figures) == set(cases)
    for name in cases:
        assert figures[name]["rate"] > 0
        assert figures[name]["tflops"] > 0
        assert f"| {name} |" in output


def test_a_resume_in_the_gpu_benchmark_gives_the_same_losses(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    options = ["--toy", "--only", "135m-resume", "--out", str(out)]
    jobs.run_python("benchmarks/gpu.py", *options, environment=os.environ, timeout_s=300)
    figures = json.loads(out.read_text())["cases"]["135m-resume"]
    assert len(figures["losses"]) == 2
    assert figures["largest_difference"] == 0


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_imports_and_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which saves the time of its imports."""
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", "--help"])
    monkeypatch.syspath_prepend(str(jobs.ROOT / "benchmarks"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(jobs.ROOT / "benchmarks" / f"{name}.py"), run_name="__main__")
    assert not ended.value.code
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


PAGE = """# Figures

<!-- benchmark: first -->
```sh
echo "one | figure"
```

| figures | of another time |

<!-- end -->

Words that stay.

<!-- benchmark: second -->
```sh
test -e {fails} && exit 3
echo 2
```
<!-- end -->

<!-- benchmark: third -->
```sh
cat out/nowhere/figures
```

left as it was
<!-- end -->
"""


def test_what_benchmarks_print_is_written_into_the_page_and_an_interrupted_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(jobs.ROOT / "benchmarks"))
    run = importlib.import_module("run")
    monkeypatch.setattr(run, "LOOK_S", 0.01)
    assert re.fullmatch(r"[0-9a-f]{7,}\+?", run.code_commit())
    monkeypatch.setattr(run, "code_commit", lambda: "abc1234")
    page, fails = tmp_path / "page.md", tmp_path / "fails"
    page.write_text(PAGE.format(fails=fails))
    arguments = ["--page", str(page), "--results", str(tmp_path / "results")]
    fails.touch()
    with pytest.raises(SystemExit, match="failed: second"):
        run.main(arguments)
    written = page.read_text()
    assert "```text\none | figure\n```\n\n<!-- end -->" in written
    assert "of another time" not in written
    assert "commit abc1234, " in written

    fails.unlink()
    capsys.readouterr()
    run.main(arguments)
    said = capsys.readouterr().out
    assert "first: has a result" in said
    assert "third: left out, there is no out/nowhere/figures" in said
    written = page.read_text()
    assert "```text\n2\n```" in written
    assert "Words that stay." in written
    assert "left as it was\n<!-- end -->" in written

    run.main([*arguments, "second"])  # asked for by name: again
    assert page.read_text().count("```text\n2\n```") == 1
    with pytest.raises(SystemExit):
        run.main([*arguments, "fourth"])
    assert "no benchmark fourth" in capsys.readouterr().err

    # Two states that no commit has may be two programs.
    monkeypatch.setattr(run, "code_commit", lambda: "abc1234+")
    for _ in range(2):
        run.main(arguments)
        assert "has a result" not in capsys.readouterr().out


def test_every_benchmark_of_the_page_can_be_run_by_name() -> None:
    page = (jobs.ROOT / "docs" / "benchmarks.md").read_text()
    names = re.findall(r"<!-- benchmark: ([\w-]+) -->", page)
    assert len(set(names)) == len(names) == page.count("<!-- end -->") >= 10
