"""Trains on given samples with TRL's SFTTrainer and packing='bfd', for benchmarks/train.py.

    python trl_sft.py FOLDER

Runs in an environment of its own (requirements-trl.txt). Reads FOLDER/samples.npz and FOLDER/model.
Then trains once for each line on standard input, and answers `SECONDS s ROWS n`.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """CPU times at which the first step began and the last one ended.

    The time between them leaves out the trainer's own start and end.
    """

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.began = getattr(self, "began", None) or time.process_time()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.ended = time.process_time()


def main(folder: Path) -> None:
    arrays = np.load(folder / "samples.npz")
    torch.set_num_threads(int(arrays["threads"]))
    ends = np.cumsum(arrays["lengths"])
    ids = np.split(arrays["ids"], ends[:-1])
    masks = [np.arange(len(i)) >= answer for i, answer in zip(ids, arrays["answers"], strict=True)]
    data = Dataset.from_dict(
        {
            "input_ids": [i.tolist() for i in ids],
            "completion_mask": [m.astype(int).tolist() for m in masks],
        }
    )
    rows = int(arrays["rows"])
    for _ in sys.stdin:
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        arguments = SFTConfig(
            output_dir=str(folder / "out"),
            use_cpu=True,
            bf16=False,
            packing=True,
            packing_strategy="bfd",
            max_length=int(arrays["pack_tokens"]),
            completion_only_loss=True,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=max(rows, 1),
            gradient_checkpointing=False,
            num_train_epochs=1,
            learning_rate=1e-4,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        clock = Clock()
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(folder / "model"),
            peft_config=LoraConfig(
                r=8,
                lora_alpha=32,
                lora_dropout=0.0,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[clock],
        )
        trainer.train()
        print(f"SECONDS {clock.ended - clock.began} ROWS {len(trainer.train_dataset)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
