"""Trains RecBole's SASRec or GRU4Rec on given sequences, for benchmarks/baselines.py.

    python recbole_baselines.py FOLDER NAME LOSS

Runs in an environment of its own (requirements-recbole.txt). Trains on FOLDER/sequences.json until
HR@1 on our validation candidates stops rising, and writes FOLDER/result.json. Dataset, loader and
training epoch are RecBole's. What is measured, and when training stops, is decided as in ours.
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
    task = json.loads((folder / "sequences.json").read_text())
    settings = task["settings"]
    (folder / "ours").mkdir(exist_ok=True)
    with (folder / "ours" / "ours.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, sequence in enumerate(task["sequences"]):
            file.writelines(f"u{user}\ti{item}\t{place}\n" for place, item in enumerate(sequence))
    config = Config(
        model=MODELS[name],
        dataset="ours",
        config_dict=recbole_config(folder, name, loss, settings, task["length"]),
    )
    init_seed(settings["seed"], True)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    model = get_model(config["model"])(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    ids = {token: number for number, token in enumerate(dataset.field2id_token["item_id"])}

    def score_candidates(split: str) -> np.ndarray:
        """Returns the scores of a split's candidates [samples, candidates].

        An item of no training sequence is unknown to RecBole, and gets -inf.
        """
        model.eval()
        histories = task[split]["histories"]
        candidates = np.array(
            [[ids.get(f"i{item}", 0) for item in row] for row in task[split]["candidates"]]
        )
        parts = []
        for start in range(0, len(histories), 512):
            rows = histories[start : start + 512]
            padded = np.zeros((len(rows), task["length"]), dtype=np.int64)
            for row, history in enumerate(rows):
                known = [ids[f"i{item}"] for item in history if f"i{item}" in ids]
                padded[row, : len(known)] = known
            lengths = torch.tensor((padded > 0).sum(axis=1).clip(min=1))
            with torch.no_grad():
                all_scores = model.full_sort_predict(
                    Interaction({"item_id_list": torch.from_numpy(padded), "item_length": lengths})
                ).numpy()
            part = candidates[start : start + 512]
            scores = np.take_along_axis(all_scores, part, axis=1)
            parts.append(np.where(part > 0, scores, -np.inf))
        return np.concatenate(parts)

    def validation_hr1() -> float:
        """Returns HR@1 on the validation candidates; ties count in expectation."""
        scores = score_candidates("validation")
        targets = np.array(task["validation"]["targets"])[:, None]
        true = np.take_along_axis(scores, targets, axis=1)
        outranked = (scores > true).any(axis=1)
        return float(np.where(outranked, 0, 1 / (scores == true).sum(axis=1)).mean())

    best = validation_hr1()
    best_epoch = 0
    best_weights = copy.deepcopy(model.state_dict())
    epochs_s = []
    epoch = 0
    while epoch < settings["max_epochs"] and epoch - best_epoch < settings["patience"]:
        epoch += 1
        began = time.process_time()
        trainer._train_epoch(train, epoch)
        epochs_s.append(time.process_time() - began)
        if (hr1 := validation_hr1()) > best:
            best = hr1
            best_epoch = epoch
            best_weights = copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)
    (folder / "result.json").write_text(
        json.dumps({"scores": score_candidates("test").tolist(), "epochs_s": epochs_s})
    )


def recbole_config(folder: Path, name: str, loss: str, settings: dict, length: int) -> dict:
    """Returns a configuration of RecBole with the sizes and the learning rate of ours."""
    sizes = {
        "sasrec": {
            "n_layers": settings["blocks"],
            "n_heads": 1,
            "hidden_size": settings["size"],
            "inner_size": settings["size"],
            "hidden_act": "relu",
            "hidden_dropout_prob": settings["dropout"],
            "attn_dropout_prob": 0.0,
        },
        "gru4rec": {
            "embedding_size": settings["size"],
            "hidden_size": settings["size"],
            "num_layers": 1,
            "dropout_prob": settings["dropout"],
        },
    }[name]
    one_negative = {"distribution": "uniform", "sample_num": 1}
    return {
        **sizes,
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": length,
        # All of it is training data; validation and test have candidates of their own.
        "eval_args": {
            "split": {"RS": [1, 0, 0]},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
        "loss_type": loss,
        "train_neg_sample_args": one_negative if loss == "BPR" else None,
        "train_batch_size": settings["recbole_batch"],
        "learning_rate": settings["learning_rate"],
        "seed": settings["seed"],
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
