"""Our metrics against ranx, from the same predictions: what jobs/evaluate.py wrote, read as a stranger would.

    python benchmarks/metrics.py out/runs/demo/evaluation/Games --ranx .venv-ranx/bin/python    (benchmarks/peers/requirements-ranx.txt)

One line per model: its samples, those left out because the true item's score ties with another's (ranx breaks ties by order, we by expectation), and
the largest difference over HR@1, 3, 5 and NDCG@3, 5. Exit code 1 if that is above 1e-9.
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
for root in (ROOT, ROOT / "platform"):
    sys.path.insert(0, str(root))

from cprec.evaluate.predictions import measured, ranks_of

PEER = Path(__file__).parent / "peers" / "ranx_metrics.py"
NAMES = {**{f"hit_rate@{k}": ("hr", str(k)) for k in (1, 3, 5)}, **{f"ndcg@{k}": ("ndcg", str(k)) for k in (3, 5)}}
MOST = 1e-9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="<run>/evaluation/<domain>")
    parser.add_argument("--ranx", required=True, help="python of an environment with ranx")
    options = parser.parse_args()
    worst = 0.0
    for file in sorted(options.folder.glob("*/predictions.parquet")):
        kept = json.loads((file.parent / "metrics.json").read_text())
        predictions = pq.read_table(file)
        alone = predictions.filter(pa.array(ranks_of(predictions).tied == 1))
        ours = kept if len(alone) == len(predictions) else measured(alone, kept["model"], kept["domain"], kept["mode"])
        peer = by_ranx(options.ranx, alone)
        apart = max(abs(ours[kind][k] - peer[name]) for name, (kind, k) in NAMES.items())
        worst = max(worst, apart)
        print(f"{file.parent.name}: {len(alone)} samples, {len(predictions) - len(alone)} left out, largest difference {apart:.1e}")
    return int(worst > MOST)


def by_ranx(python: str, predictions: pa.Table) -> dict[str, float]:
    """ranx's means: of scores where there are any, else of the items named in turn; a true item that was not named is relevant and not ranked."""
    relevant: dict[str, dict[str, int]] = {}
    ranked: dict[str, dict[str, float]] = {}
    for row in predictions.to_pylist():
        if row["scores"] is not None:
            true, scored = row["target"], dict(enumerate(row["scores"]))
        else:
            true = "not named" if row["rank"] is None else row["ranking"][round(row["rank"]) - 1]
            scored = {item: float(-place) for place, item in enumerate(row["ranking"])} or {"nothing": 0.0}
        relevant[str(row["sample_id"])] = {str(true): 1}
        ranked[str(row["sample_id"])] = {str(item): score for item, score in scored.items()}
    asked = json.dumps({"relevant": relevant, "ranked": ranked})
    found: dict[str, Any] = json.loads(subprocess.run([python, str(PEER)], input=asked, capture_output=True, text=True, check=True).stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())
