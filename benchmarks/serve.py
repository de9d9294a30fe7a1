"""Loads jobs/serve.py on the loopback interface: latency at rising load, a swap, a killed replica.

    python benchmarks/serve.py [--clients 1 4 16 64] [--seconds 20] [--replicas 1]

The corpus is simulated, the base is tiny, and two random adapters are versions 1 and 2. Clients ask
one request after the other, each with 20 candidates, and never ask one twice: whatever is not
answered with 200 is an error. The server runs in processes of its own, on the same machine as the
clients. Prints the tables of docs/benchmarks.md.
"""

import argparse
import asyncio
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import workload  # first: it makes the packages importable
import aiohttp
import numpy as np
import psutil
import torch

from corpus.build import simulate_and_build
from cprec.encode.prompt import TABLE1
from cprec.config.recipe_file import validate_recipe
from cprec.model import adapter, backbone, tiny
from cprec.ranking.items import ItemLookup
from cprec.tracking.registry import Registry

DOMAIN = "Games"
LIMIT_S = 300
"""Seconds that the server may take to come to a line that is waited for."""


@dataclass
class Answers:
    """What clients got.

    Attributes:
        seconds: Latency of each answered request.
        statuses: Number of answers by status; 0 where the connection broke.
        models: Number of answers by model.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    def row(self, wall_s: float) -> str:
        """Returns requests, requests per second, p50, p99 and longest (ms), and errors."""
        p50, p99, longest = np.percentile(np.array(self.seconds) * 1000, [50, 99, 100])
        errors = self.statuses.total() - self.statuses[200]
        return (
            f"{self.statuses.total():,} | {len(self.seconds) / wall_s:,.1f} | {p50:,.0f} | "
            f"{p99:,.0f} | {longest:,.0f} | {errors} |"
        )


def prepare(place: Path, replicas: int) -> tuple[Path, Registry, list[bytes]]:
    """Writes a corpus, a base and two versions; returns recipe, registry and requests."""
    values = {
        "storage": f"{place}/runs",
        "corpus": f"{place}/corpus",
        "workers": replicas,
        "data": {
            "root": f"{place}/shoppers",
            "format": "simulated",
            "domains": ["Books"],
            "held_out": [DOMAIN],
        },
        "simulate": {"users": 500, "items_per_domain": 400, "domains_per_user": 2},
        "recommend": {"domain": DOMAIN, "candidates": "given"},
        "serve": {"port": 0, "watch_s": 1.0},
    }
    recipe = validate_recipe(values, "the benchmark")
    corpus = simulate_and_build(recipe.data, recipe.simulate, recipe.seed, recipe.corpus, print)
    base = str(place / "base")
    tiny.build(corpus.read_titles(), recipe.tiny, recipe.seed, place / "base", TABLE1)
    registry = Registry.from_recipe(recipe)
    for seed in (1, 2):
        network: Any = adapter.attach(backbone.load(base, None, "fp32")[0], recipe.model, seed)
        weights = adapter.trainable_parameters(network)
        random = {name: torch.randn_like(weight) * 0.3 for name, weight in weights.items()}
        folder = place / f"adapter-{seed}"
        adapter.save(network, random, folder, base, None, TABLE1)
        registry.register(str(folder), {"base": base})
    registry.set_alias("champion", 1)
    items = ItemLookup.from_corpus(corpus, DOMAIN)
    samples = corpus.read_samples(corpus.find_domain_source(DOMAIN, "test"), "test").to_pylist()
    requests = [
        json.dumps({name: items.ids(row[name]) for name in ("history", "candidates")}).encode()
        for row in samples
    ]
    path = place / "recipe.json"
    path.write_text(json.dumps(values))
    return path, registry, requests


class Server:
    """jobs/serve.py in a process of its own."""

    def __init__(self, recipe: Path, token: str) -> None:
        self._log = recipe.with_name("serve.log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "jobs/serve.py", recipe, "--model", "models:/cprec@champion"],
                cwd=workload.ROOT,
                env={**os.environ, "CPREC_SERVE_TOKEN": token},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.url = re.findall(r"http://[\d.:]+", self.wait_for("listening on http"))[0]
        self.wait_for("ready: version-1")

    def wait_for(self, text: str) -> str:
        """Waits until the server has printed a text; returns all that it has printed."""
        end = time.monotonic() + LIMIT_S
        while text not in (printed := self._log.read_text()):
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server did not come to {text!r}:\n{printed}")
            time.sleep(0.05)
        return printed

    def kill_replica(self) -> None:
        """Kills the first replica with SIGKILL."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if (process.cmdline() or [""])[0].startswith("ray::ServeReplica"):
                process.kill()
                return
        raise SystemExit("no replica to kill")

    def stop(self) -> int:
        """Ends the server as Ctrl-C does; returns its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(LIMIT_S)


async def load(
    url: str,
    token: str,
    requests: Sequence[bytes],
    clients: int,
    has_ended: Callable[[float], bool],
) -> tuple[Answers, float]:
    """Lets clients ask, one request after the other, until it has ended.

    Args:
        url: The server.
        token: Its token.
        requests: The requests, which are asked in turn.
        clients: Number of clients.
        has_ended: Takes the seconds since the start.

    Returns:
        What they got, and the seconds that it took.
    """
    answers = Answers()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    started = time.monotonic()

    async def ask(session: aiohttp.ClientSession, number: int) -> None:
        while not has_ended(time.monotonic() - started):
            begun = time.perf_counter()
            status, model = 0, ""
            try:
                body = requests[number % len(requests)]
                async with session.post(f"{url}/rank", data=body) as response:
                    status, model = response.status, (await response.json()).get("model", "")
            except aiohttp.ClientError:
                pass
            answers.statuses[status] += 1
            if status == 200:
                answers.seconds.append(time.perf_counter() - begun)
                answers.models[model] += 1
            number += clients

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=LIMIT_S)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout
    ) as session:
        await asyncio.gather(*(ask(session, number) for number in range(clients)))
    return answers, time.monotonic() - started


def measure(server: Server, registry: Registry, requests: Sequence[bytes], token: str) -> None:
    """Measures, and prints the tables."""
    options = parse()

    def run(clients: int, has_ended: Callable[[float], bool]) -> tuple[Answers, float]:
        return asyncio.run(load(server.url, token, requests, clients, has_ended))

    run(1, lambda seconds: seconds > 3)  # warm up
    head = "requests | requests/s | p50 ms | p99 ms | longest ms | errors |"
    print(f"| clients | {head}\n|---|---|---|---|---|---|---|")
    for clients in options.clients:
        answers, wall_s = run(clients, lambda seconds: seconds > options.seconds)
        print(f"| {clients} | {answers.row(wall_s)}", flush=True)

    print(f"\n| {options.fault_clients} clients, while | {head}\n|---|---|---|---|---|---|---|")
    registry.set_alias("champion", 2)
    ends: list[float] = []

    def has_swapped(seconds: float) -> bool:
        if not ends and "ready: version-2" in server.wait_for("ready: version-1"):
            ends.append(seconds + 5)
        return seconds > (ends[0] if ends else LIMIT_S)

    answers, wall_s = run(options.fault_clients, has_swapped)
    print(f"| the champion changes | {answers.row(wall_s)}", flush=True)
    print(f"  answers by model: {dict(answers.models)}; swap after {ends[0] - 5:.1f} s", flush=True)
    killed: list[float] = []

    def kill_once(seconds: float) -> bool:
        if not killed and seconds > 2:
            server.kill_replica()
            killed.append(seconds)
        return seconds > 2 + options.kill_seconds

    answers, wall_s = run(options.fault_clients, kill_once)
    print(f"| a replica is killed | {answers.row(wall_s)}", flush=True)


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--fault-clients", type=int, default=4, help="during swap and kill")
    parser.add_argument("--kill-seconds", type=float, default=40, help="of load after the kill")
    return parser.parse_args()


def main() -> None:
    options = parse()
    token = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory() as folder:
        recipe, registry, requests = prepare(Path(folder), options.replicas)
        server = Server(recipe, token)
        try:
            measure(server, registry, requests, token)
        finally:
            print(f"\nexit code after Ctrl-C: {server.stop()}")


if __name__ == "__main__":
    main()
