"""HR@k and NDCG@k by ranx; run by benchmarks/metrics.py in an environment of its own (requirements-ranx.txt).

python ranx_metrics.py    reads {model: {"relevant": {sample: {item: 1}}, "ranked": {sample: {item: score}}}} from standard input and prints
                          {model: {metric: mean}}
"""

import json
import sys

from ranx import Qrels, Run, evaluate

METRICS = ["hit_rate@1", "hit_rate@3", "hit_rate@5", "ndcg@3", "ndcg@5"]


def main() -> None:
    found = {}
    for model, asked in json.load(sys.stdin).items():
        means = evaluate(Qrels(asked["relevant"]), Run(asked["ranked"]), METRICS)
        found[model] = {name: float(value) for name, value in means.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
