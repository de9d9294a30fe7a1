"""RecBole's SASRec and GRU4Rec on sequences given to it; run by benchmarks/baselines.py in an environment of its own (requirements-recbole.txt).

python recbole_baselines.py FOLDER NAME LOSS    trains on FOLDER/sequences.json to early stop on our validation candidates, writes FOLDER/result.json

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
    config = Config(
        model=MODELS[name],
        dataset="ours",
        config_dict=values(folder, name, loss, settings, found["length"]),
    )
    init_seed(settings["seed"], True)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    model = get_model(config["model"])(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    ids = {token: number for number, token in enumerate(dataset.field2id_token["item_id"])}

    def scores(split: str) -> np.ndarray:
        """[n, candidates]; an item that no training sequence holds is not known to RecBole, and comes last."""
        model.eval()
        histories, parts = found[split]["histories"], []
        candidates = np.array(
            [[ids.get(f"i{item}", 0) for item in row] for row in found[split]["candidates"]]
        )
        for at in range(0, len(histories), 512):
            rows = histories[at : at + 512]
            padded = np.zeros((len(rows), found["length"]), dtype=np.int64)
            for row, history in enumerate(rows):
                known = [ids[f"i{item}"] for item in history if f"i{item}" in ids]
                padded[row, : len(known)] = known
            lengths = torch.tensor((padded > 0).sum(axis=1).clip(min=1))
            with torch.no_grad():
                every = model.full_sort_predict(
                    Interaction({"item_id_list": torch.from_numpy(padded), "item_length": lengths})
                ).numpy()
            here = candidates[at : at + 512]
            parts.append(np.where(here > 0, np.take_along_axis(every, here, axis=1), -np.inf))
        return np.concatenate(parts)

    def hr1() -> float:
        own = scores("validation")
        true = np.take_along_axis(own, np.array(found["validation"]["targets"])[:, None], axis=1)
        return float(np.where((own > true).any(axis=1), 0, 1 / (own == true).sum(axis=1)).mean())

    best, best_epoch, kept, seconds, epoch = hr1(), 0, copy.deepcopy(model.state_dict()), [], 0
    while epoch < settings["max_epochs"] and epoch - best_epoch < settings["patience"]:
        epoch += 1
        began = time.process_time()
        trainer._train_epoch(train, epoch)
        seconds.append(time.process_time() - began)
        if (reached := hr1()) > best:
            best, best_epoch, kept = reached, epoch, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    (folder / "result.json").write_text(
        json.dumps({"scores": scores("test").tolist(), "epochs_s": seconds})
    )


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
        "gru4rec": {
            "embedding_size": settings["size"],
            "hidden_size": settings["size"],
            "num_layers": 1,
            "dropout_prob": settings["dropout"],
        },
    }[name]
    return {
        **own,
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": length,
        # Everything handed over is training data: validation and test come with their own candidates.
        "eval_args": {
            "split": {"RS": [1, 0, 0]},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
        "loss_type": loss,
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}
        if loss == "BPR"
        else None,
        "train_batch_size": settings["recbole_batch"],
        "learning_rate": settings["lr"],
        "seed": settings["seed"],
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
