"""Computes HR@k and NDCG@k with ranx, for benchmarks/metrics.py.

    python ranx_metrics.py

Runs in an environment of its own (requirements-ranx.txt). Reads from standard input
{model: {"relevant": {sample: {item: 1}}, "ranked": {sample: {item: score}}}}, and prints
{model: {metric: mean}}.
"""

import json
import sys

from ranx import Qrels, Run, evaluate

METRICS = ["hit_rate@1", "hit_rate@3", "hit_rate@5", "ndcg@3", "ndcg@5"]


def main() -> None:
    means_by_model = {}
    for model, request in json.load(sys.stdin).items():
        means = evaluate(Qrels(request["relevant"]), Run(request["ranked"]), METRICS)
        means_by_model[model] = {name: float(value) for name, value in means.items()}
    print(json.dumps(means_by_model))


if __name__ == "__main__":
    main()
