"""Compares our metrics with those of ranx, from the predictions that jobs/evaluate.py wrote.

    python benchmarks/metrics.py out/runs/demo/evaluation/Games --ranx .venv-ranx/bin/python

The environment of ranx is made from benchmarks/peers/requirements-ranx.txt.

Prints one line per model: its samples, how many were left out, and the largest difference over
HR@1, 3, 5 and NDCG@3, 5. A sample is left out if another candidate has the score of the true item:
ranx breaks ties by order, we take the expectation. The exit code is 1 if a difference exceeds 1e-9.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from cprec.evaluation.predictions import to_metrics, to_ranks

PEER = Path(__file__).parent / "peers" / "ranx_metrics.py"
OUR_NAMES = {
    **{f"hit_rate@{k}": ("hr", str(k)) for k in (1, 3, 5)},
    **{f"ndcg@{k}": ("ndcg", str(k)) for k in (3, 5)},
}
"""Where each metric of ranx stands in metrics.json: (kind, k)."""
TOLERANCE = 1e-9


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="<run>/evaluation/<domain>")
    parser.add_argument("--ranx", required=True, help="python of an environment with ranx")
    options = parser.parse_args()
    evaluations = {
        file.parent.name: (
            json.loads((file.parent / "metrics.json").read_text()),
            pq.read_table(file),
        )
        for file in sorted(complete_predictions(options.folder))
    }
    without_ties = {
        name: predictions.filter(pa.array(to_ranks(predictions).tied_counts == 1))
        for name, (_, predictions) in evaluations.items()
    }
    request = json.dumps({name: to_ranx(table) for name, table in without_ties.items()})
    answer = subprocess.run(
        [options.ranx, str(PEER)], input=request, capture_output=True, text=True, check=True
    )
    peer = json.loads(answer.stdout)
    largest_difference = 0.0
    for name, (stored, predictions) in evaluations.items():
        compared = without_ties[name]
        ours = (
            stored
            if len(compared) == len(predictions)
            else to_metrics(compared, stored["model"], stored["domain"], stored["mode"])
        )
        difference = max(
            abs(ours[kind][k] - peer[name][ranx_name]) for ranx_name, (kind, k) in OUR_NAMES.items()
        )
        largest_difference = max(largest_difference, difference)
        print(
            f"{name}: {len(compared)} samples, {len(predictions) - len(compared)} left out,"
            f" largest difference {difference:.1e}"
        )
    return int(largest_difference > TOLERANCE)


def complete_predictions(folder: Path) -> list[Path]:
    """Lists the predictions that have metrics beside them; others are not complete."""
    return [
        file
        for file in folder.glob("*/predictions.parquet")
        if (file.parent / "metrics.json").exists()
    ]


def to_ranx(predictions: pa.Table) -> dict[str, Any]:
    """Converts predictions to what ranx reads: the relevant item and the scored items by sample.

    Scores are taken where there are any. Otherwise the model named items in turn, and an item's
    score falls with its place. A true item that was not named is relevant but not ranked.
    """
    relevant: dict[str, dict[str, int]] = {}
    ranked: dict[str, dict[str, float]] = {}
    for row in predictions.to_pylist():
        if row["scores"] is not None:
            true_item = row["target"]
            item_scores = dict(enumerate(row["scores"]))
        else:
            named = row["ranking"]
            true_item = "not named" if row["rank"] is None else named[round(row["rank"]) - 1]
            item_scores = {item: float(-place) for place, item in enumerate(named)}
            item_scores = item_scores or {"nothing": 0.0}  # ranx takes no empty ranking
        relevant[str(row["sample_id"])] = {str(true_item): 1}
        ranked[str(row["sample_id"])] = {str(item): score for item, score in item_scores.items()}
    return {"relevant": relevant, "ranked": ranked}


if __name__ == "__main__":
    sys.exit(main())
