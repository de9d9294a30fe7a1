"""Compares SASRec and GRU4Rec with RecBole's, on one domain of a corpus.

    python benchmarks/baselines.py --corpus out/corpus --domain Games \\
        --recbole .venv-recbole/bin/python

The environment of RecBole is made from benchmarks/peers/requirements-recbole.txt. Both sides get
the same training sequences, candidates, early stop, sizes, dropout and batch, and one thread. Seeds
alternate between the two. Prints three lines per baseline, `name ours peer ...`:

- the CPU seconds of an epoch (median over all epochs of all seeds) and their ratio;
- HR@1 and NDCG@5 on the test split (mean ± standard deviation over seeds), with the difference of
  the means, its 95 % interval over users, and its p.

RecBole makes a training row of every prefix of a sequence; we train on all places of one row. An
epoch is each transition once for both, and a step has equally many of them. Losses, optimizers and
places of layer norms differ. Ours are those of the papers: cross-entropy with one negative at
every place for SASRec; TOP1 over the batch and Adagrad for GRU4Rec. RecBole's are its defaults with
`--loss`, and Adam for both.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from corpus.store.tables import Corpus
from cprec.baselines import training
from cprec.baselines.recommender import Recommender
from cprec.baselines.sequences import training_sequences
from cprec.config.sections.finetuning import BaselineSettings
from cprec.downstream.domain import Domain, sort_by_id
from cprec.evaluation.metrics import compute_ranks, discounted_gains, hits
from cprec.evaluation.significance import paired_t_test

PEER = Path(__file__).parent / "peers" / "recbole_baselines.py"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """What both sides are given. Items are numbered from 1 within the domain; 0 is padding.

    Attributes:
        domain: The domain of the corpus.
        sequences: Training sequences of items.
        scored_samples: Samples of the splits that are scored, by split.
        length: Items of the longest history.
        settings: Sizes and training of both models.
    """

    domain: Domain
    sequences: list[list[int]]
    scored_samples: Mapping[str, pa.Table]
    length: int
    settings: BaselineSettings

    @classmethod
    def from_corpus(
        cls, corpus: Corpus, domain_name: str, max_samples: int | None, settings: BaselineSettings
    ) -> "Task":
        """Reads a domain; max_samples caps the validation and the test samples, each."""
        domain = Domain.from_corpus(corpus, domain_name)
        splits = {
            split: corpus.read_samples(domain.source, split)
            for split in ("train", "validation", "test")
        }
        sequences = [
            (domain.to_local_numbers(np.array(sequence)) + 1).tolist()
            for sequence in training_sequences(*splits.values())
        ]
        scored_samples = {
            split: sort_by_id(splits[split], max_samples) for split in ("validation", "test")
        }
        length = max(len(h) for h in scored_samples["validation"]["history"].to_pylist())
        return cls(domain, sequences, scored_samples, length, settings)

    def histories(self, split: str) -> list[list[int]]:
        """Returns the items of each history."""
        return [
            (self.domain.to_local_numbers(np.array(history)) + 1).tolist()
            for history in self.scored_samples[split]["history"].to_pylist()
        ]

    def candidates(self, split: str) -> NDArray[np.int64]:
        """Returns the candidate items [samples, candidates]."""
        candidates = np.array(self.scored_samples[split]["candidates"].to_pylist())
        return self.domain.to_local_numbers(candidates) + 1

    def targets(self, split: str) -> NDArray[np.int64]:
        """Returns the place of the true item among the candidates [samples]."""
        return np.asarray(self.scored_samples[split]["target"].to_numpy())


@dataclass(frozen=True)
class Result:
    """One trained baseline.

    Attributes:
        scores: Scores of the test candidates [samples, candidates].
        epoch_cpu_s: CPU seconds of each epoch's training.
    """

    scores: Floats
    epoch_cpu_s: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--domain", required=True)
    parser.add_argument("--recbole", required=True, help="python of an environment with RecBole")
    parser.add_argument("--baselines", default="sasrec,gru4rec")
    parser.add_argument("--samples", type=int, help="validation and test samples, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patience", type=int, default=5)
    parser.add_argument("--max-epochs", type=int, default=2000)
    parser.add_argument(
        "--loss",
        choices=("BPR", "CE"),
        default="BPR",
        help="RecBole's loss: one negative, as in our SASRec, or all items",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = BaselineSettings(
        patience=options.patience, patience_steps=0, max_epochs=options.max_epochs
    )
    corpus = Corpus.open(options.corpus)
    task = Task.from_corpus(corpus, options.domain, options.samples, settings)
    for name in options.baselines.split(","):
        ours = []
        peers = []
        for seed in range(options.seeds):
            ours.append(train_ours(name, task, seed))
            peers.append(train_peer(options.recbole, options.loss, name, task, seed))
            epochs = f"{len(ours[-1].epoch_cpu_s)}, {len(peers[-1].epoch_cpu_s)}"
            print(f"{name} seed {seed}: epochs {epochs}", file=sys.stderr, flush=True)
        print_comparison(name, task, ours, peers)


def print_comparison(
    name: str, task: Task, ours: Sequence[Result], peers: Sequence[Result]
) -> None:
    """Prints the three lines of a baseline; ours and peers hold one result per seed."""
    our_s, peer_s = (
        float(np.median([s for result in side for s in result.epoch_cpu_s]))
        for side in (ours, peers)
    )
    print(f"{name}_epoch_cpu_s {our_s:.3f} {peer_s:.3f} {peer_s / our_s:.2f}", flush=True)
    targets = task.targets("test")
    for metric, per_user in (
        ("HR@1", lambda ranks: hits(ranks, 1)),
        ("NDCG@5", lambda ranks: discounted_gains(ranks, 5)),
    ):
        # [seeds, users]
        our_values, peer_values = (
            np.stack([per_user(compute_ranks(result.scores, targets)) for result in side])
            for side in (ours, peers)
        )
        means = " ".join(
            f"{values.mean():.4f}±{values.mean(axis=1).std(ddof=len(values) > 1):.4f}"
            for values in (our_values, peer_values)
        )
        test = paired_t_test(peer_values.mean(axis=0), our_values.mean(axis=0))
        margin = "" if test.high is None else f" ±{test.high - test.difference:.4f}"
        print(
            f"{name}_{metric} {means} difference {test.difference:+.4f}{margin}"
            f" p {test.p:.2g} n {test.n} seeds {len(our_values)}",
            flush=True,
        )


def train_ours(name: str, task: Task, seed: int) -> Result:
    """Trains our baseline to its early stop and scores the test candidates."""
    torch.manual_seed(seed)
    num_items = len(task.domain.item_indices)
    network = training.build_network(name, num_items, task.length, task.settings)
    histories = task.histories("validation")
    candidates = task.candidates("validation")
    targets = task.targets("validation")
    cpu_s = []
    resumed_at = 0.0

    def measure(recommender: Recommender) -> float:
        """Returns HR@1; the time since the previous measurement was an epoch's training."""
        nonlocal resumed_at
        cpu_s.append(time.process_time() - resumed_at)
        scores = training.score_candidates(recommender, histories, candidates)
        hr1 = float(hits(compute_ranks(scores, targets), 1).mean())
        resumed_at = time.process_time()
        return hr1

    training.fit_network(network, task.sequences, task.settings, seed, measure)
    scores = training.score_candidates(network, task.histories("test"), task.candidates("test"))
    return Result(scores, cpu_s[1:])  # the first measurement is before any training


def train_peer(python: str, loss: str, name: str, task: Task, seed: int) -> Result:
    """Trains RecBole's baseline in a process of its own, in its own environment."""
    splits = {
        split: {
            "histories": task.histories(split),
            "candidates": task.candidates(split).tolist(),
            "targets": task.targets(split).tolist(),
        }
        for split in task.scored_samples
    }
    # RecBole's batch counts transitions, ours counts sequences: a step has as many in both.
    transitions = float(np.mean([min(len(s) - 1, task.length) for s in task.sequences]))
    settings = {
        **task.settings.model_dump(),
        "seed": seed,
        "learning_rate": task.settings.lr,
        "recbole_batch": round(task.settings.batch * transitions),
    }
    content = {
        "sequences": task.sequences,
        **splits,
        "length": task.length,
        "settings": settings,
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sequences.json").write_text(json.dumps(content))
        process = subprocess.run(
            [Path(python).absolute(), PEER, folder, name, loss],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
        result_file = Path(folder) / "result.json"
        if process.returncode or not result_file.is_file():
            raise SystemExit(f"RecBole failed:\n{process.stderr[-3000:]}")
        result: dict[str, Any] = json.loads(result_file.read_text())
    return Result(np.array(result["scores"], dtype=np.float64), result["epochs_s"])


if __name__ == "__main__":
    main()
