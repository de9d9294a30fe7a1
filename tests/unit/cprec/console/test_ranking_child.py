"""The process that ranks: started when asked, and whatever becomes of it, a sentence says so."""

import asyncio
from pathlib import Path

import pytest

from cluster.errors import RunError
from cprec.console.ranking_child import RankingChild


def test_a_child_answers_says_what_is_wrong_and_is_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    nothing = (f"--storage={tmp_path}/runs", f"--corpus={tmp_path}/corpus")

    async def ask() -> None:
        child = RankingChild(nothing, said.append)
        with pytest.raises(RunError, match="no corpus"):
            await child.ask({"ask": "choices"})
        assert child._process is not None
        child._process.kill()
        await child._process.wait()
        with pytest.raises(RunError, match="no corpus"):
            await child.ask({"ask": "choices"})
        await child.end()
        assert child._process.returncode is not None

    asyncio.run(ask())
    assert len(said) == 2  # it was started twice


def test_a_child_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def ask() -> None:
        child = RankingChild(("--no-such-key=1",), lambda line: None)
        with pytest.raises(RunError, match="no-such-key"):
            await child.ask({"ask": "choices"})
        await child.end()

    asyncio.run(ask())
