"""One served session on real Ray: answers, limits, another model, a killed replica, its end."""

import json
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil
import pytest

from corpus.build import simulate_and_build
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import load_recipe
from cprec.encode.prompt import TABLE1
from cprec.model import tiny
from cprec.ranking.items import ItemLookup
from cprec.ranking.ranker import Ranker
from cprec.tracking.registry import Registry
from cprec.workflows.evaluation.models import find_model
from tests.integration import jobs
from tests.integration.workflows.test_evaluate_and_promote import register

# PEFT uses a deprecated name of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOKEN = "the-token-of-this-test"
REPLICA = "ray::ServeReplica:cprec"
CLIENTS = 4


@dataclass
class Server:
    """A running jobs/serve.py, and what it is asked about."""

    process: "subprocess.Popen[str]"
    url: str
    recipe: Recipe
    registry: Registry
    items: ItemLookup
    samples: list[dict[str, Any]]
    printed: list[str] = field(default_factory=list)

    def ask(self, path: str, body: Any = None, token: str | None = TOKEN) -> tuple[int, Any]:
        """Returns status and content of an answer."""
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, data, headers), timeout=120
            ) as answer:
                status, content = answer.status, answer.read()
        except HTTPError as error:
            status, content = error.code, error.read()
        return status, json.loads(content) if content[:1] == b"{" else content.decode()

    def request(self, number: int) -> dict[str, Any]:
        """Returns a request that gives candidates: a sample of the test split."""
        sample = self.samples[number % len(self.samples)]
        history, candidates = (self.items.ids(sample[name]) for name in ("history", "candidates"))
        return {"history": history, "candidates": candidates, "k": len(candidates)}

    def wait_for(self, text: str) -> None:
        """Waits until a line has been printed that holds a text."""
        jobs.wait_for(self.process, lambda: any(text in line for line in self.printed))

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.ask("/metrics")[1], re.M)
        return float(found[1]) if found else 0.0

    def replicas(self) -> list[psutil.Process]:
        return jobs.below(self.process.pid, REPLICA)


Answer = tuple[int, int, Any]
"""Number of a request, status and content of its answer."""


class Load:
    """Clients that ask one request after the other, and never twice, while a `with` block runs."""

    def __init__(self, server: Server) -> None:
        self.answers: list[Answer] = []
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(CLIENTS)]

    def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            self.answers.append((number, *self._server.ask("/rank", self._server.request(number))))
            number += CLIENTS

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()

    def __exit__(self, *_: object) -> None:
        self.stop()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("serve")
    path = jobs.recipe(
        place,
        run="cpt",
        recommend={"domain": "Games"},
        retrieval={"sources": []},
        serve={"port": 0, "watch_s": 0.2, "timeout_s": 120, "max_history": 60, "max_kib": 16},
        workers=1,
    )
    recipe = load_recipe(str(path))
    corpus = simulate_and_build(recipe.data, recipe.simulate, recipe.seed, recipe.corpus, print)
    tiny.build(corpus.read_titles(), recipe.tiny, recipe.seed, place / "base", TABLE1)
    registry = Registry.from_recipe(recipe)
    for seed in (1, 2, 3):
        register(registry, recipe, place, seed, 0.3)
    registry.set_alias("champion", 1)
    source = corpus.find_domain_source("Games", "test")
    arguments = (path, "--model", "models:/cprec@champion")
    process = jobs.start("serve", *arguments, environment={"CPREC_SERVE_TOKEN": TOKEN})
    server = Server(
        process,
        "",
        recipe,
        registry,
        ItemLookup.from_corpus(corpus, "Games"),
        corpus.read_samples(source, "test").to_pylist(),
    )
    threading.Thread(target=_collect, args=(process, server.printed), daemon=True).start()
    server.wait_for("listening on ")
    server.url = re.findall(r"http://127\.0\.0\.1:\d+", "".join(server.printed))[0]
    assert server.ask("/health", token=None) == (200, "ok")
    server.wait_for("ready: version-1")
    assert server.ask("/ready", token=None) == (200, "ready")
    yield server
    if process.poll() is None:
        process.terminate()
    process.wait(60)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def _collect(process: "subprocess.Popen[str]", lines: list[str]) -> None:
    assert process.stdout is not None
    lines.extend(iter(process.stdout.readline, ""))


def rank_here(server: Server, version: str) -> list[dict[str, float]]:
    """Ranks all samples in this process; returns the score of each candidate, best first."""
    model = find_model(server.recipe, server.registry, version)
    ranker = Ranker.load(server.recipe, model, print, server.items.domain)
    rows = [{name: row[name] for name in ("history", "candidates")} for row in server.samples]
    rankings = ranker.rank([ranker.encode_items(**row) for row in rows])
    return [
        {
            ids[i]: score
            for i, score in zip(ranking.order.tolist(), ranking.scores.tolist(), strict=True)
        }
        for ids, ranking in zip(
            (server.items.ids(row["candidates"]) for row in rows), rankings, strict=True
        )
    ]


def check_answers(server: Server, answers: Sequence[Answer], models: Sequence[str]) -> None:
    """Checks that every request was answered, with the scores that one of the models gives."""
    scores = {model: rank_here(server, model.removeprefix("version-")) for model in models}
    for number, status, answer in answers:
        assert status == 200, answer
        wanted = scores[answer["model"]][number % len(server.samples)]
        assert [row["item"] for row in answer["items"]] == list(wanted)
        for row in answer["items"]:
            assert row["score"] == pytest.approx(wanted[row["item"]], abs=1e-3)
        assert sum(row["probability"] for row in answer["items"]) == pytest.approx(1)


def test_answers_are_those_of_the_ranker(server: Server) -> None:
    with Load(server) as load:
        jobs.wait_for(server.process, lambda: len(load.answers) >= len(server.samples))
    check_answers(server, load.answers, ["version-1"])
    ranked = server.metric("cprec_serve_batch_requests_count")
    assert ranked == len(load.answers)
    assert server.metric("cprec_serve_batch_requests_sum") > ranked  # some shared a pass
    # Without candidates: items of the whole domain that are not in the history.
    history = server.request(0)["history"]
    status, answer = server.ask("/rank", {"history": history, "k": 5})
    assert (status, answer["domain"], answer["candidates"]) == (200, "Games", 20)
    found = [row["item"] for row in answer["items"]]
    assert len(set(found)) == 5
    assert not set(found) & set(history)
    assert set(found) < set(server.items.index_of_id)


def test_nobody_ranks_without_the_token(server: Server) -> None:
    for token in (None, "another-token-of-this-test", TOKEN[:-1], f"{TOKEN}x", ""):
        for path, body in (("/rank", server.request(0)), ("/metrics", None)):
            status, answer = server.ask(path, body, token)
            assert (status, "Authorization: Bearer" in answer["error"]) == (401, True)
    page = server.ask("/openapi.json", token=None)[1]
    assert set(page["paths"]) == {"/rank", "/health", "/ready", "/metrics"}
    assert "POST /rank" in server.ask("/docs", token=None)[1]
    driver = psutil.Process(server.process.pid)
    for process in [driver, *driver.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it may have ended meanwhile
            assert process == driver or TOKEN not in process.environ().values()
            addresses = {c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"}
            assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, process.cmdline()
    assert not any(TOKEN in line for line in server.printed)


@pytest.mark.parametrize(
    ("status", "change", "message"),
    [
        (422, {"history": []}, "the history is empty"),
        (422, {"history": ["a"] * 61}, "history: 61; this server takes 60 at most"),
        (422, {"candidates": ["a"] * 101}, "candidates: 101; this server takes 100 at most"),
        (422, {"candidates": ["a"]}, "candidates: 'a' is no item of Games"),
        (422, {"k": 0}, "k: Input should be greater than or equal to 1"),
        (422, {"k": 101}, "k: 101; this server takes 100 at most"),
        (422, {"user": "u1"}, "user: Extra inputs are not permitted"),
        (413, {"history": ["a" * (1 << 14)]}, "16,384 bytes, which this server takes at most"),
        (422, b"{", "body: no JSON"),
        (400, b"\xff", "error parsing the body"),
    ],
)
def test_what_cannot_be_ranked_is_refused_and_explained(
    server: Server, status: int, change: Any, message: str
) -> None:
    body = change if isinstance(change, bytes) else {**server.request(0), **change}
    found, answer = server.ask("/rank", body)
    assert (found, message in answer["error"]) == (status, True), answer


def test_another_champion_takes_over_and_no_request_is_lost(server: Server) -> None:
    with Load(server) as load:
        server.registry.set_alias("champion", 2)
        server.wait_for("ready: version-2")
        count = len(load.answers)
        jobs.wait_for(server.process, lambda: len(load.answers) > count + CLIENTS)
    check_answers(server, load.answers, ["version-1", "version-2"])
    served = [answer["model"] for _, _, answer in load.answers]
    assert served[0] == "version-1"
    assert set(served[count + CLIENTS :]) == {"version-2"}
    jobs.wait_for(server.process, lambda: len(server.replicas()) == 1)
    assert server.metric('cprec_serve_swaps_total{outcome="done"}') == 1
    assert server.metric('cprec_serve_model{model="version-2"}') == 1


def test_a_champion_that_cannot_be_loaded_changes_nothing(server: Server) -> None:
    Path(server.registry.version(3).checkpoint, "manifest.json").unlink()
    server.registry.set_alias("champion", 3)
    server.wait_for("version 2 goes on; version 3 of cprec, from run cpt was not loaded: ")
    assert server.ask("/rank", server.request(0))[1]["model"] == "version-2"
    assert server.metric('cprec_serve_swaps_total{outcome="failed"}') == 1


def test_a_killed_replica_loses_no_request(server: Server) -> None:
    with Load(server) as load:
        # Serve itself sends again what a replica had not taken. To see the server do it for what
        # was taken, a replica is killed until that was so: of four requests, nearly always at once.
        for _ in range(5):
            lose_replica(server, load)
            if retries := server.metric("cprec_serve_retries_total"):
                break
    assert retries >= 1
    check_answers(server, load.answers, ["version-2"])


def lose_replica(server: Server, load: Load) -> None:
    """Kills the only replica under load, and waits for the next one's answers."""
    (replica,) = server.replicas()
    count = len(load.answers)
    jobs.wait_for(server.process, lambda: len(load.answers) > count + 2 * CLIENTS)
    replica.suspend()
    time.sleep(1.0)  # until every client has a request under way, which it then loses
    replica.kill()
    count = len(load.answers)
    jobs.wait_for(server.process, lambda: len(load.answers) > count + 4 * CLIENTS)
    assert [other.pid != replica.pid for other in server.replicas()] == [True]


def test_a_signal_ends_it_once_it_has_answered(server: Server) -> None:
    processes = psutil.Process(server.process.pid).children(recursive=True)
    (replica,) = server.replicas()
    with Load(server) as load:
        jobs.wait_for(server.process, lambda: len(load.answers) > CLIENTS)
        replica.suspend()
        try:
            # The last request of each client is taken, and has no answer before the signal.
            jobs.wait_for(server.process, lambda: server.metric("cprec_serve_under_way") == CLIENTS)
            load.stop()
            count = len(load.answers)
            server.process.send_signal(signal.SIGTERM)
        finally:
            replica.resume()
    assert len(load.answers) == count + CLIENTS
    assert {status for _, status, _ in load.answers} == {200}
    assert server.process.wait(60) == 130
    assert server.process.stderr is not None
    last = server.process.stderr.read().splitlines()[-1]
    assert last == "interrupted; the same command starts the server again"
    assert not psutil.wait_procs(processes, timeout=30)[1]
