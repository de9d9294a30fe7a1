"""Training on one CPU machine: useful tokens/s against a padded loop and TRL's packing, prompt building, what of the gain is the logits'.

    python benchmarks/train.py --corpus out/corpus                               prompt building and the padded loop
    python benchmarks/train.py --corpus out/corpus --trl .venv-trl/bin/python    and TRL (benchmarks/peers/requirements-trl.txt)

All ways train the same model (LoRA r = 8) in fp32 on the same samples, one optimizer step per global batch. Useful tokens are those of samples, never
padding. Rounds are interleaved, seconds are CPU seconds on --threads threads; each line is `what ours peer ratio`.
"""

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import workload  # first: it makes the packages importable
import numpy as np
import torch
from torch.nn.functional import cross_entropy

from cprec.encode import prompt
from cprec.model import attention
from cprec.config.recipe import TrainSettings
from cprec.stream.packing import MicroBatchSpec, build_micro_batches
from cprec.stream.segments import SAMPLES_PER_READ_TASK
from cprec.encode.title_tokens import CachedPromptEncoder
from cprec.train.engine import Engine


ENVIRONMENT = dict(os.environ)
"""As it was before DeepSpeed wrote into it what makes other trainers look for more workers."""


def ours(work: workload.Workload, options: argparse.Namespace) -> Callable[[], float]:
    """The shipped way: stitched, packed, logits of supervised tokens, DeepSpeed's engine."""
    engine = Engine(made(work, options), TrainSettings(zero_stage=0), "fp32")
    cut, end = MicroBatchSpec(packed=True, size=options.pack_tokens), work.tokens.eos_token_id

    def once() -> None:
        for share in workload.shares(
            CachedPromptEncoder(work.tokens, 2048).encode_samples(work.rows), options.batch
        ):
            engine.step(
                build_micro_batches(share, cut, end), share.global_batch.supervised_tokens, 1e-4, 0
            )

    return lambda: workload.timed(once)


def all_logits(work: workload.Workload, options: argparse.Namespace) -> Callable[[], float]:
    """As ours, packed, but with the logits of every token: what packing alone gives."""
    model = made(work, options)
    attention.enable_packing(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    cut = MicroBatchSpec(packed=True, size=options.pack_tokens)

    def once() -> None:
        for share in workload.shares(
            CachedPromptEncoder(work.tokens, 2048).encode_samples(work.rows), options.batch
        ):
            for batch in build_micro_batches(share, cut, work.tokens.eos_token_id):
                bounds = attention.packed_arguments(
                    torch.from_numpy(batch.bounds), int(np.diff(batch.bounds).max())
                )
                ids, positions = (
                    torch.from_numpy(batch.input_ids),
                    torch.from_numpy(batch.position_ids),
                )
                logits = model(
                    input_ids=ids, position_ids=positions, use_cache=False, **bounds
                ).logits
                labels = torch.full(ids.shape, -100)
                labels[torch.from_numpy(batch.supervised_mask)] = torch.from_numpy(batch.targets)
                (
                    cross_entropy(
                        logits.view(-1, logits.shape[-1]), labels.view(-1), reduction="sum"
                    )
                    / share.global_batch.supervised_tokens
                ).backward()
            optimizer.step()
            optimizer.zero_grad()

    return lambda: workload.timed(once)


def padded(work: workload.Workload, options: argparse.Namespace) -> Callable[[], float]:
    """As LLaRA's public code runs a Hugging Face model: tokenised in the loop, each micro-batch padded to its longest, logits of every token."""
    model = made(work, options)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    tokenizer = work.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    texts = rendered(work)

    def once() -> None:
        for start in range(0, len(texts), options.batch):
            for low in range(start, min(start + options.batch, len(texts)), options.micro_batch):
                pairs = texts[low : min(low + options.micro_batch, start + options.batch)]
                batch = tokenizer(
                    [f"{text} {answer}{tokenizer.eos_token}" for text, answer in pairs],
                    padding="longest",
                    return_tensors="pt",
                )
                prompts = tokenizer([text for text, _ in pairs])["input_ids"]
                labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
                for row, ids in enumerate(prompts):
                    labels[row, : len(ids)] = -100
                loss = model(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    labels=labels,
                ).loss
                (loss * len(pairs) / options.batch).backward()
            optimizer.step()
            optimizer.zero_grad()

    return lambda: workload.timed(once)


@contextmanager
def trl(work: workload.Workload, options: argparse.Namespace) -> Iterator[Callable[[], float]]:
    """TRL in its own process; one round per line that it is sent."""
    found = work.samples()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = made(work, options).get_base_model()  # type: ignore[operator]
        unwrapped(base).save_pretrained(folder / "model")
        work.tokenizer.save_pretrained(folder / "model")
        tokens = sum(len(s.ids) for s in found[: options.batch])
        np.savez(
            folder / "samples.npz",
            ids=np.concatenate([s.ids for s in found]),
            lengths=[len(s.ids) for s in found],
            answers=[s.answer_start for s in found],
            pack_tokens=options.pack_tokens,
            rows=-(-tokens // options.pack_tokens),
            threads=torch.get_num_threads(),
        )
        command = [options.trl, str(Path(__file__).parent / "peers" / "trl_sft.py"), str(folder)]
        with (
            (folder / "errors").open("w") as errors,
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=ENVIRONMENT,
            ) as process,
        ):
            assert process.stdin
            assert process.stdout

            def once() -> float:
                process.stdin.write("go\n")
                process.stdin.flush()
                for line in process.stdout:
                    if line.startswith("SECONDS"):
                        return float(line.split()[1])
                raise RuntimeError((folder / "errors").read_text()[-2000:])

            yield once
            process.stdin.close()


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """A model of the same base weights, without LoRA's layers."""
    from transformers import LlamaForCausalLM

    plain = LlamaForCausalLM(model.config)
    state = {
        name.replace(".base_layer", ""): value
        for name, value in model.state_dict().items()
        if "lora_" not in name
    }
    plain.load_state_dict(state)
    return plain


def made(work: workload.Workload, options: argparse.Namespace) -> torch.nn.Module:
    return workload.model(len(work.tokenizer), options.hidden, options.layers)


def rendered(work: workload.Workload) -> list[tuple[str, str]]:
    """Prompt and answer of every sample as text."""
    found = []
    for row in work.rows.select(["history", "candidates", "target"]).to_pylist():
        history, candidates = (
            [work.titles[i] for i in row[name]] for name in ("history", "candidates")
        )
        found.append((prompt.render_prompt(history, candidates), candidates[row["target"]]))
    return found


def prompts(options: argparse.Namespace) -> str:
    """Stitching what one read task holds against one call of the tokenizer on the same texts; rendering them is not counted."""
    work = workload.Workload.of(
        options.corpus, SAMPLES_PER_READ_TASK, options.vocabulary, options.tokenizer
    )
    texts = [f"{text} {answer}" for text, answer in rendered(work)]
    stitcher = CachedPromptEncoder(work.tokens, 2048)
    ways = {
        "ours": lambda: workload.timed(lambda: stitcher.encode_samples(work.rows)),
        "peer": lambda: workload.timed(lambda: work.tokenizer(texts)),
    }
    seconds = workload.interleaved(ways, 2 * options.rounds)
    tokens = sum(len(s.ids) for s in work.samples())
    return workload.compare(
        "prompt building: tokenizer(batch)", seconds["ours"], seconds["peer"], tokens, "tokens/s"
    )


def training(work: workload.Workload, options: argparse.Namespace) -> list[str]:
    """Ours against each peer."""
    ways = {
        "ours": ours(work, options),
        "packed, all logits": all_logits(work, options),
        "padded loop": padded(work, options),
    }
    if options.trl:
        with trl(work, options) as peer:
            seconds = workload.interleaved(
                {**ways, "TRL SFTTrainer, packing='bfd'": peer}, options.rounds
            )
    else:
        seconds = workload.interleaved(ways, options.rounds)
    found = work.samples()
    tokens = sum(len(s.ids) for s in found)
    rest = {
        name: values
        for name, values in seconds.items()
        if name not in ("ours", "packed, all logits")
    }
    lines = [
        workload.compare(f"training: {name}", seconds["ours"], values, tokens, "useful tokens/s")
        for name, values in rest.items()
    ]
    apart = seconds["packed, all logits"]
    lines += [
        workload.compare(
            "  of it: logits of supervised tokens only",
            seconds["ours"],
            apart,
            tokens,
            "useful tokens/s",
        )
    ]
    lines += [
        workload.compare(
            f"  of it: all else against {name}", apart, values, tokens, "useful tokens/s"
        )
        for name, values in rest.items()
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="a built corpus")
    parser.add_argument("--trl", help="python of an environment with TRL")
    parser.add_argument(
        "--tokenizer",
        help="directory of a tokenizer; default: a byte-level one of --vocabulary tokens, trained on the titles",
    )
    for name, value in (
        ("samples", 64),
        ("batch", 32),
        ("micro-batch", 8),
        ("pack-tokens", 2048),
        ("hidden", 128),
        ("layers", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("vocabulary", 4096), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    workload.alone()
    work = workload.Workload.of(
        options.corpus, options.samples, options.vocabulary, options.tokenizer
    )
    found = work.samples()
    tokens, answers = (
        sum(len(s.ids) for s in found),
        sum(len(s.ids) - s.answer_start for s in found),
    )
    print(
        f"{len(found)} samples, {tokens / len(found):.0f} tokens each, {answers / len(found):.1f} supervised; vocabulary {len(work.tokenizer):,}"
    )
    print(prompts(options), flush=True)
    for line in training(work, options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
