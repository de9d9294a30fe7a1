"""RecBole's SASRec and GRU4Rec on sequences given to it; run by benchmarks/baselines.py in an environment of its own (requirements-recbole.txt).

python recbole_baselines.py FOLDER NAME LOSS    reads FOLDER/sequences.json, trains to early stop on our validation candidates, prints one JSON object

The dataset, the loader and the training epoch are RecBole's; what is measured, and when training stops, is decided as ours decides it.
"""

import copy
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import get_model, get_trainer, init_seed

MODELS = {"sasrec": "SASRec", "gru4rec": "GRU4Rec"}


def main(folder: Path, name: str, loss: str) -> None:
    torch.set_num_threads(1)
    found = json.loads((folder / "sequences.json").read_text())
    settings = found["settings"]
    (folder / "ours").mkdir(exist_ok=True)
    with (folder / "ours" / "ours.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, sequence in enumerate(found["sequences"]):
            file.writelines(f"u{user}\ti{item}\t{place}\n" for place, item in enumerate(sequence))
    config = Config(model=MODELS[name], dataset="ours", config_dict=values(folder, name, loss, settings, found["length"]))
    init_seed(settings["seed"], True)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    model = get_model(config["model"])(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    ids = {token: number for number, token in enumerate(dataset.field2id_token["item_id"])}

    def hr1(split: str) -> tuple[float, list[int]]:
        model.eval()
        hits = []
        for at in range(0, len(found[split]), 512):
            rows = found[split][at : at + 512]
            histories = np.zeros((len(rows), found["length"]), dtype=np.int64)
            for row, sample in enumerate(rows):
                known = [ids[f"i{i}"] for i in sample["history"] if f"i{i}" in ids]
                histories[row, : len(known)] = known
            lengths = torch.tensor([max(int((h > 0).sum()), 1) for h in histories])
            with torch.no_grad():
                scores = model.full_sort_predict(Interaction({"item_id_list": torch.from_numpy(histories), "item_length": lengths})).numpy()
            for row, sample in enumerate(rows):
                own = np.array([scores[row, ids[f"i{i}"]] if f"i{i}" in ids else -np.inf for i in sample["candidates"]])
                tied = int((own == own[sample["target"]]).sum())
                hits.append(0.0 if (own > own[sample["target"]]).any() else 1 / tied)
        return float(np.mean(hits)), hits

    best, best_epoch, kept, seconds, epoch = hr1("validation")[0], 0, copy.deepcopy(model.state_dict()), [], 0
    while epoch < settings["max_epochs"] and epoch - best_epoch < settings["patience"]:
        epoch += 1
        began = time.perf_counter()
        trainer._train_epoch(train, epoch)
        seconds.append(time.perf_counter() - began)
        if (reached := hr1("validation")[0]) > best:
            best, best_epoch, kept = reached, epoch, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    print("RESULT " + json.dumps({"test": hr1("test")[1], "validation": best, "epochs": epoch, "epoch_s": float(np.median(seconds))}))


def values(folder: Path, name: str, loss: str, settings: dict, length: int) -> dict:
    """Of RecBole's configuration: the sizes and rates that ours has."""
    own = {
        "sasrec": {
            "n_layers": settings["blocks"],
            "n_heads": 1,
            "hidden_size": settings["size"],
            "inner_size": settings["size"],
            "hidden_act": "relu",
            "hidden_dropout_prob": settings["dropout"],
            "attn_dropout_prob": 0.0,
        },
        "gru4rec": {"embedding_size": settings["size"], "hidden_size": settings["size"], "num_layers": 1, "dropout_prob": settings["dropout"]},
    }[name]
    return {
        **own,
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": length,
        # Everything handed over is training data: validation and test come with their own candidates.
        "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": "user", "mode": "full"},
        "loss_type": loss,
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1} if loss == "BPR" else None,
        "train_batch_size": settings["recbole_batch"],
        "learning_rate": settings["rate"],
        "seed": settings["seed"],
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
