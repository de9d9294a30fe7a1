"""The recipe of the paper's data: its commands build the corpus of both platforms, and plan all."""

import json
import re
import shlex
from pathlib import Path

import yaml

from corpus.store.tables import Corpus
from tests.integration import jobs
from tests.unit.corpus.worlds import shop

RECIPE = "jobs/recipes/paper.yaml"
TEXT = (jobs.ROOT / RECIPE).read_text()
DATA = yaml.safe_load(TEXT)["data"]


def write_amazon(root: Path, domains: list[str]) -> None:
    """Writes files as Amazon's release of 2018 has them."""
    root.mkdir()
    for domain, rows in shop(domains).items():
        reviews = [{"reviewerID": u, "asin": i, "unixReviewTime": t + 1} for u, i, t in rows]
        items = [{"asin": i, "title": f"Title of {i}"} for i in sorted({i for _, i, _ in rows})]
        for name, table in ((domain, reviews), (f"meta_{domain}", items)):
            (root / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in table))


def write_ninerec(root: Path, domains: list[str]) -> None:
    """Writes files as NineRec has them."""
    root.mkdir()
    for domain, rows in shop(domains).items():
        pairs = "".join(f"{u},{i},{t + 1}\n" for u, i, t in rows)
        items = "".join(f"{i},标题 {i},Title of {i}\n" for i in sorted({i for _, i, _ in rows}))
        (root / f"{domain}_pair.csv").write_text(pairs)
        (root / f"{domain}_item.csv").write_text(items)


def commands() -> list[list[str]]:
    """The commands in the head of the recipe, as a shell splits them."""
    head = "\n".join(line.removeprefix("#") for line in TEXT.splitlines() if line.startswith("#"))
    lines = re.sub(r"\\\n\s*", "", head).splitlines()
    found = [shlex.split(line) for line in lines if line.strip().startswith("python jobs/")]
    return [[Path(words[1]).stem, *words[2:]] for words in found]


def test_the_commands_of_the_recipe_build_and_plan_the_papers_tables(tmp_path: Path) -> None:
    bili = [name for name in DATA["held_out"] if name.startswith("Bili_")]
    amazon = [*DATA["domains"], *(name for name in DATA["held_out"] if name not in bili)]
    assert (len(DATA["domains"]), len(DATA["held_out"])) == (7, 5)
    write_amazon(tmp_path / "amazon2018", amazon)
    write_ninerec(tmp_path / "ninerec", bili)
    places = {f"data/{name}": str(tmp_path / name) for name in ("amazon2018", "ninerec")}
    common = ["--corpus", str(tmp_path / "corpus"), "--storage", str(tmp_path / "runs")]
    build, append, reproduce = (
        [places.get(word, word) for word in command] for command in commands()
    )
    build += ["--data.root", places["data/amazon2018"]]
    checked = jobs.run_here(*build, *common, "--dry-run").stdout
    assert all(name in checked for name in amazon)
    jobs.run_here(*build, *common)
    assert "Bili_Movie" in jobs.run_here(*append, *common, "--dry-run").stdout
    jobs.run_here(*append, *common)

    domains = Corpus.open(str(tmp_path / "corpus")).statistics()["domains"]
    assert {name for name, counts in domains.items() if counts["held_out"]} == set(DATA["held_out"])
    assert set(domains) == {*amazon, *bili}
    plan = jobs.run_here(*reproduce, *common, "--dry-run").stdout
    for name in DATA["held_out"]:
        assert f"score-cprec-{name}" in plan
