"""Our metrics against those of ranx, from the predictions that jobs/evaluate.py wrote.

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

from cprec.evaluate.predictions import to_metrics, to_ranks

PEER = Path(__file__).parent / "peers" / "ranx_metrics.py"
NAMES = {
    **{f"hit_rate@{k}": ("hr", str(k)) for k in (1, 3, 5)},
    **{f"ndcg@{k}": ("ndcg", str(k)) for k in (3, 5)},
}
MOST = 1e-9


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="<run>/evaluation/<domain>")
    parser.add_argument("--ranx", required=True, help="python of an environment with ranx")
    options = parser.parse_args()
    kept = {
        file.parent.name: (
            json.loads((file.parent / "metrics.json").read_text()),
            pq.read_table(file),
        )
        for file in sorted(files(options.folder))
    }
    alone = {
        name: predictions.filter(pa.array(to_ranks(predictions).tied_count == 1))
        for name, (_, predictions) in kept.items()
    }
    asked = json.dumps({name: as_ranx(table) for name, table in alone.items()})
    peer = json.loads(
        subprocess.run(
            [options.ranx, str(PEER)], input=asked, capture_output=True, text=True, check=True
        ).stdout
    )
    worst = 0.0
    for name, (written, predictions) in kept.items():
        left = len(alone[name])
        ours = (
            written
            if left == len(predictions)
            else to_metrics(alone[name], written["model"], written["domain"], written["mode"])
        )
        apart = max(abs(ours[kind][k] - peer[name][metric]) for metric, (kind, k) in NAMES.items())
        worst = max(worst, apart)
        print(
            f"{name}: {left} samples, {len(predictions) - left} left out, largest difference {apart:.1e}"
        )
    return int(worst > MOST)


def files(folder: Path) -> list[Path]:
    """Predictions with metrics beside them: the others are not complete."""
    return [
        file
        for file in folder.glob("*/predictions.parquet")
        if (file.parent / "metrics.json").exists()
    ]


def as_ranx(predictions: pa.Table) -> dict[str, Any]:
    """What is relevant and how it is ranked: by scores where there are any, else by the items named in turn; a true item that was not named is
    relevant and not ranked."""
    relevant: dict[str, dict[str, int]] = {}
    ranked: dict[str, dict[str, float]] = {}
    for row in predictions.to_pylist():
        if row["scores"] is not None:
            true, scored = row["target"], dict(enumerate(row["scores"]))
        else:
            true = "not named" if row["rank"] is None else row["ranking"][round(row["rank"]) - 1]
            scored = {item: float(-place) for place, item in enumerate(row["ranking"])} or {
                "nothing": 0.0
            }
        relevant[str(row["sample_id"])] = {str(true): 1}
        ranked[str(row["sample_id"])] = {str(item): score for item, score in scored.items()}
    return {"relevant": relevant, "ranked": ranked}


if __name__ == "__main__":
    sys.exit(main())
