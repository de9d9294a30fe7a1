"""SASRec and GRU4Rec against RecBole's: same training sequences, same candidates, same early stop, one thread each.

    python benchmarks/baselines.py --corpus out/corpus --domain Games --recbole .venv-recbole/bin/python    (peers/requirements-recbole.txt)

One line per baseline: `name ours peer ratio` of an epoch's seconds (median), then HR@1 on the test split of both and the paired p of no difference.
RecBole makes a training row of every prefix of a sequence, we train on all places of one row; both count as an epoch when each transition was seen.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

ROOT = Path(__file__).resolve().parent.parent
for root in (ROOT, ROOT / "platform"):
    sys.path.insert(0, str(root))

from corpus.table import Corpus
from cprec.baselines import training
from cprec.baselines.network import Recommender
from cprec.baselines.sequences import training_sequences
from cprec.downstream.items import Domain, by_id
from cprec.evaluate.metrics import hits, ranks
from cprec.evaluate.significance import paired
from cprec.recipe import BaselineSettings

PEER = Path(__file__).parent / "peers" / "recbole_baselines.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--domain", required=True)
    parser.add_argument("--recbole", required=True, help="python of an environment with RecBole")
    parser.add_argument("--samples", type=int, default=2000, help="validation and test samples, at most")
    parser.add_argument("--patience", type=int, default=10)
    parser.add_argument("--loss", choices=("BPR", "CE"), default="BPR", help="RecBole's loss: one negative, as ours, or all items")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = BaselineSettings(patience=options.patience)
    corpus = Corpus.open(options.corpus)
    domain = Domain.of(corpus, options.domain)
    splits = {split: corpus.samples(domain.source, split) for split in ("train", "validation", "test")}
    sequences = [(domain.numbers(np.array(s)) + 1).tolist() for s in training_sequences(*splits.values())]
    scored = {split: by_id(splits[split], options.samples) for split in ("validation", "test")}
    for name in training.NAMES:
        mine, fitted = ours(name, domain, sequences, scored, settings)
        other = peer(options, name, domain, sequences, scored, settings)
        p = paired(np.array(other["test"]), mine).p
        print(
            f"{name}_epoch_s {fitted.epoch_s:.3f} {other['epoch_s']:.3f} {other['epoch_s'] / fitted.epoch_s:.1f}   "
            f"HR@1 {mine.mean():.4f} {np.mean(other['test']):.4f} p {p:.2g} n {len(mine)} epochs {fitted.epochs} {other['epochs']}",
            flush=True,
        )


def ours(
    name: str, domain: Domain, sequences: list[list[int]], scored: dict[str, pa.Table], settings: BaselineSettings
) -> tuple[np.ndarray, training.Fitted]:
    """Hits of the test samples, and how training went."""
    torch.manual_seed(0)
    length = max(len(h) for h in scored["validation"]["history"].to_pylist())
    network = training.make(name, len(domain.indices), length, settings)

    def hit(now: Recommender, split: str) -> np.ndarray:
        histories = [(domain.numbers(np.array(h)) + 1).tolist() for h in scored[split]["history"].to_pylist()]
        candidates = domain.numbers(np.array(scored[split]["candidates"].to_pylist())) + 1
        return hits(ranks(training.score(now, histories, candidates), scored[split]["target"].to_numpy()), 1)

    fitted = training.fit(network, sequences, settings, 0, lambda now: float(hit(now, "validation").mean()))
    return hit(network, "test"), fitted


def peer(
    options: argparse.Namespace, name: str, domain: Domain, sequences: list[list[int]], scored: dict[str, pa.Table], settings: BaselineSettings
) -> dict[str, Any]:
    """RecBole's hits of the test samples, and how its training went."""
    given = {
        split: [
            {
                "history": (domain.numbers(np.array(row["history"])) + 1).tolist(),
                "candidates": (domain.numbers(np.array(row["candidates"])) + 1).tolist(),
                "target": row["target"],
            }
            for row in table.select(["history", "candidates", "target"]).to_pylist()
        ]
        for split, table in scored.items()
    }
    length = max(len(row["history"]) for row in given["validation"])
    # As many transitions in a step as ours has.
    per_sequence = float(np.mean([min(len(s) - 1, length) for s in sequences]))
    shared = {**settings.model_dump(), "seed": 0, "recbole_batch": round(settings.batch * per_sequence)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sequences.json").write_text(json.dumps({"sequences": sequences, **given, "length": length, "settings": shared}))
        command = [options.recbole, str(PEER), folder, name, options.loss]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"RecBole failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return found


if __name__ == "__main__":
    main()
