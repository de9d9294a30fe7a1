"""SASRec and GRU4Rec against RecBole's: same training sequences, same candidates, same early stop, sizes, dropout and batch, one thread each.

    python benchmarks/baselines.py --corpus out/corpus --domain Games --recbole .venv-recbole/bin/python    (peers/requirements-recbole.txt)

Seeds alternate between the two. Three lines per baseline, `name ours peer ...`: CPU seconds of an epoch (median over all epochs of all seeds) and
their ratio; HR@1 and NDCG@5 on the test split (mean ± standard deviation over seeds), the difference of the means with its 95 % interval over users,
and its p. RecBole makes a training row of every prefix of a sequence, we train on all places of one row: an epoch is each transition once for both,
and a step has as many of them. Losses, optimizers and places of layer norms are each one's own: ours are those of the papers (SASRec: cross-entropy
with one negative at every place; GRU4Rec: TOP1 over the batch, Adagrad), RecBole's are its defaults with `--loss` (both Adam).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
for root in (ROOT, ROOT / "platform"):
    sys.path.insert(0, str(root))

from corpus.store.tables import Corpus
from cprec.baselines import training
from cprec.baselines.recommender import Recommender
from cprec.baselines.sequences import training_sequences
from cprec.downstream.domain import Domain, sort_by_id
from cprec.evaluate.metrics import discounted_gains, hits, compute_ranks
from cprec.evaluate.significance import paired_t_test
from cprec.config.recipe import BaselineSettings

PEER = Path(__file__).parent / "peers" / "recbole_baselines.py"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """What both are given. sequences: training items 1 .. items; scored: samples by split; length: places of a history."""

    domain: Domain
    sequences: list[list[int]]
    scored: Mapping[str, pa.Table]
    length: int
    settings: BaselineSettings

    @classmethod
    def of(
        cls, corpus: Corpus, name: str, samples: int | None, settings: BaselineSettings
    ) -> "Task":
        domain = Domain.from_corpus(corpus, name)
        splits = {
            split: corpus.read_samples(domain.source, split)
            for split in ("train", "validation", "test")
        }
        sequences = [
            (domain.to_local_numbers(np.array(s)) + 1).tolist()
            for s in training_sequences(*splits.values())
        ]
        scored = {split: sort_by_id(splits[split], samples) for split in ("validation", "test")}
        return cls(
            domain,
            sequences,
            scored,
            max(len(h) for h in scored["validation"]["history"].to_pylist()),
            settings,
        )

    def histories(self, split: str) -> list[list[int]]:
        return [
            (self.domain.to_local_numbers(np.array(h)) + 1).tolist()
            for h in self.scored[split]["history"].to_pylist()
        ]

    def candidates(self, split: str) -> NDArray[np.int64]:
        return (
            self.domain.to_local_numbers(np.array(self.scored[split]["candidates"].to_pylist())) + 1
        )

    def targets(self, split: str) -> NDArray[np.int64]:
        return np.asarray(self.scored[split]["target"].to_numpy())


@dataclass(frozen=True)
class Trained:
    """scores: of the test candidates [n, C]; epochs_s: CPU seconds of each epoch's training."""

    scores: Floats
    epochs_s: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--domain", required=True)
    parser.add_argument("--recbole", required=True, help="python of an environment with RecBole")
    parser.add_argument("--baselines", default=",".join(training.BASELINE_NAMES))
    parser.add_argument("--samples", type=int, help="validation and test samples, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patience", type=int, default=5)
    parser.add_argument("--max-epochs", type=int, default=2000)
    parser.add_argument(
        "--loss",
        choices=("BPR", "CE"),
        default="BPR",
        help="RecBole's loss: one negative, as our SASRec, or all items",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = BaselineSettings(
        patience=options.patience, patience_steps=0, max_epochs=options.max_epochs
    )
    task = Task.of(Corpus.open(options.corpus), options.domain, options.samples, settings)
    for name in options.baselines.split(","):
        rounds = []
        for seed in range(options.seeds):
            rounds.append(
                (ours(name, task, seed), peer(options.recbole, options.loss, name, task, seed))
            )
            print(
                f"{name} seed {seed}: epochs {', '.join(str(len(one.epochs_s)) for one in rounds[-1])}",
                file=sys.stderr,
                flush=True,
            )
        show(name, task, [mine for mine, _ in rounds], [other for _, other in rounds])


def show(name: str, task: Task, mine: list[Trained], other: list[Trained]) -> None:
    own_s, peer_s = (
        float(np.median([s for one in side for s in one.epochs_s])) for side in (mine, other)
    )
    print(f"{name}_epoch_cpu_s {own_s:.3f} {peer_s:.3f} {peer_s / own_s:.2f}", flush=True)
    target = task.targets("test")
    for metric, of in (
        ("HR@1", lambda r: hits(r, 1)),
        ("NDCG@5", lambda r: discounted_gains(r, 5)),
    ):
        own, its = (
            np.stack([of(compute_ranks(one.scores, target)) for one in side])
            for side in (mine, other)
        )
        seen = " ".join(
            f"{side.mean():.4f}±{side.mean(axis=1).std(ddof=len(side) > 1):.4f}"
            for side in (own, its)
        )
        users = paired_t_test(its.mean(axis=0), own.mean(axis=0))
        reach = "" if users.high is None else f" ±{users.high - users.difference:.4f}"
        print(
            f"{name}_{metric} {seen} difference {users.difference:+.4f}{reach} p {users.p:.2g} n {users.n} seeds {len(own)}",
            flush=True,
        )


def ours(name: str, task: Task, seed: int) -> Trained:
    torch.manual_seed(seed)
    network = training.build_network(
        name, len(task.domain.item_indices), task.length, task.settings
    )
    histories, candidates, target = (
        task.histories("validation"),
        task.candidates("validation"),
        task.targets("validation"),
    )
    seconds, resumed = [], 0.0

    def measure(now: Recommender) -> float:
        """An epoch is what lies between two measurements."""
        nonlocal resumed
        seconds.append(time.process_time() - resumed)
        hr1 = float(
            hits(
                compute_ranks(training.score_candidates(now, histories, candidates), target), 1
            ).mean()
        )
        resumed = time.process_time()
        return hr1

    training.fit_network(network, task.sequences, task.settings, seed, measure)
    return Trained(
        training.score_candidates(network, task.histories("test"), task.candidates("test")),
        seconds[1:],
    )


def peer(python: str, loss: str, name: str, task: Task, seed: int) -> Trained:
    given = {
        split: {
            "histories": task.histories(split),
            "candidates": task.candidates(split).tolist(),
            "targets": task.targets(split).tolist(),
        }
        for split in task.scored
    }
    # As many transitions in a step as ours has.
    per_sequence = float(np.mean([min(len(s) - 1, task.length) for s in task.sequences]))
    shared = {
        **task.settings.model_dump(),
        "seed": seed,
        "recbole_batch": round(task.settings.batch * per_sequence),
    }
    with tempfile.TemporaryDirectory() as folder:
        content = {"sequences": task.sequences, **given, "length": task.length, "settings": shared}
        (Path(folder) / "sequences.json").write_text(json.dumps(content))
        done = subprocess.run(
            [python, str(PEER), folder, name, loss],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
        result = Path(folder) / "result.json"
        if done.returncode or not result.is_file():
            raise SystemExit(f"RecBole failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(result.read_text())
    return Trained(np.array(found["scores"], dtype=np.float64), found["epochs_s"])


if __name__ == "__main__":
    main()
