"""Shows what pre-training is worth, on one GPU and without Ray, over several short visits to it.

    python benchmarks/science.py prepare jobs/recipes/amazon-smollm2.yaml --archive science.zip
    python benchmarks/science.py run --archive science.zip --state out/science --minutes 12
    python benchmarks/science.py run --archive science.zip --state out/science --minutes 12
    python benchmarks/science.py show --archive science.zip --state out/science

`prepare` needs the whole platform and the recipe's corpus (jobs/build_corpus.py), and takes the
recipe's keys, such as `--train.compile true`; the archive has samples, titles and base. `run` needs
that archive alone, and PyTorch, transformers, PEFT, DeepSpeed, pyarrow, safetensors, fsspec,
botocore, pydantic and ruamel.yaml. It ends after so many minutes with a checkpoint, and the next
one goes on from there; a kill costs what was done since the last checkpoint.

It scores the base, pre-trains by the recipe's plan, scores that, and fine-tunes from fresh weights
(LLaRA) and from the pre-trained ones (CPRec): each rate of search.lrs with the first seed, and the
best by HR@1 on validation with all. SASRec is trained on the samples of fine-tuning. The test split
is only scored. The table has HR@k over seeds, and each model's difference to LLaRA.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from support import workload  # noqa: F401  first: it makes the packages importable
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from support.study_archive import Archive, prepare
from support.study_training import OutOfTimeError, Training

from cprec.downstream.stored_model import BEHAVIOUR_FOLDER
from cprec.baselines import training as baselines
from cprec.downstream import hybrid, llara
from cprec.downstream.hybrid import HybridModel, build_encoders
from cprec.encode.title_encoding import UncachedPromptEncoder, build_title_encoding
from cprec.encode.title_tokens import CachedPromptEncoder
from cprec.encode.tokens import TitleEncoder
from cprec.evaluation.candidate_scoring import score_samples
from cprec.evaluation.metrics import compute_ranks, hits
from cprec.evaluation.scoring_check import choose_scoring
from cprec.evaluation.significance import compare_seeds, paired_t_test
from cprec.model import adapter, backbone
from cprec.runs import checkpoint
from cprec.schedule.ledger import Ledger
from cprec.schedule.plan import Plan, global_batches
from cprec.stream.worker_rows import to_worker_rows, worker_batch_from_row
from cprec.train.loop import TrainingStep

CUTOFFS = (1, 3, 5)
LLARA, CPREC = "llara", "cprec"
LLARA_ROW = "fine-tuned only (LLaRA)"
Floats = NDArray[np.float64]


@dataclass
class Study:
    """A study in its folder: results of steps that are done, and checkpoints of the others.

    Attributes:
        archive: What is studied.
        state: The folder.
        seeds: Seeds of everything that is trained.
        is_over: Tells whether the visit is over.
        say: Takes lines of progress.
    """

    archive: Archive
    state: Path
    seeds: int
    is_over: Callable[[], bool]
    say: Callable[[str], None] = print
    results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Reads the results that are there."""
        self.state.mkdir(parents=True, exist_ok=True)
        if (file := self.state / "results.json").exists():
            self.results = json.loads(file.read_text())

    def run(self) -> None:
        """Does all steps that are not done.

        Raises:
            OutOfTimeError: The visit is over first.
        """
        self.step("score-base", partial(self.score, "score-base", None))
        for seed in range(self.seeds):
            self.step(f"sasrec-{seed}", partial(self.train_sasrec, seed))
            pretrained = self.step(f"pretrain-{seed}", partial(self.pretrain, seed))
            name = f"score-pretrain-{seed}"
            self.step(name, partial(self.score, name, pretrained))
            for start in (LLARA, CPREC):
                tuned = self.tune_best(start, seed)
                name = f"score-{start}-{seed}"
                self.step(name, partial(self.score, name, tuned["checkpoint"]))

    def step(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns the result of a step, which is computed and kept first if it is not there."""
        if name not in self.results:
            if self.is_over():
                raise OutOfTimeError(name)
            began = time.monotonic()
            self.results[name] = compute()
            replace_text(self.state / "results.json", json.dumps(self.results, indent=1))
            self.say(f"{name}: {time.monotonic() - began:.0f} s in this visit")
        return self.results[name]

    def tune_best(self, start: str, seed: int) -> Any:
        """Fine-tunes with the rate that the first seed finds best on validation."""
        trials = {
            lr: self.step(f"tune-{start}-{lr:g}-0", partial(self.tune, start, lr, 0))
            for lr in self.archive.recipe.search.lrs
        }
        best = max(trials, key=lambda lr: trials[lr]["hr1"])
        return self.step(f"tune-{start}-{best:g}-{seed}", partial(self.tune, start, best, seed))

    def pretrain(self, seed: int) -> str:
        """Pre-trains by the plan, and returns the checkpoint."""
        recipe, plan = self.archive.recipe, self.archive.plan
        network, tokenizer = self.load_base()
        encoding = build_title_encoding(self.archive.titles, tokenizer, self.archive.template)
        limit = recipe.model.max_tokens
        encoder = (
            UncachedPromptEncoder(
                self.archive.titles, TitleEncoder(tokenizer, limit, self.archive.template)
            )
            if encoding.title_tokens is None
            else CachedPromptEncoder(encoding.title_tokens, limit)
        )
        rows = self.archive.samples("plan")

        def steps(ledger: Ledger) -> Iterator[TrainingStep]:
            for era in plan.eras:
                for start, stop in global_batches(era.start, era.stop, recipe.train.global_batch):
                    if start >= ledger.samples:
                        batch = rows.slice(start, stop - start)
                        ids = batch["sample_id"].to_numpy().view(np.uint64)
                        sources = batch["source"].to_pylist()
                        samples = encoder.encode_samples(batch)
                        [row] = to_worker_rows(start, stop, samples, ids, sources, 1)
                        yield TrainingStep(
                            worker_batch_from_row(row),
                            plan.wsa.lr(start),
                            plan.wsa.phase(start),
                            plan.wsa.stable_end,
                            plan.total_samples,
                        )

        model = adapter.attach(network, recipe.model, seed)
        return self.training(f"pretrain-{seed}", plan, seed).run(model, steps, tokenizer)[0]

    def tune(self, start: str, lr: float, seed: int) -> dict[str, Any]:
        """Fine-tunes as LLaRA does, to early stop on validation; returns its best epoch."""
        recipe, archive = self.archive.recipe, self.archive
        network, tokenizer = self.load_base()
        if start == CPREC:
            folder = Path(self.results[f"pretrain-{seed}"]) / checkpoint.ADAPTER
            model = adapter.load_for_training(network, folder)
        else:
            model = adapter.attach(network, recipe.model, seed)
        if recipe.finetune.hybrid:
            weights = load_file(self.state / "sasrec-0.safetensors")
            model = HybridModel(model, weights["item.weight"][1:], seed).train()
        samples = archive.samples("train")
        plan = llara.build_plan(
            f"domain/{archive.domain}", 0, len(samples), lr, recipe.finetune, seed
        )
        encoders = build_encoders(
            tokenizer, recipe.model.max_tokens, model, archive.items_by_index(), archive.template
        )

        def steps(ledger: Ledger) -> Iterator[TrainingStep]:
            yield from llara.iter_training_steps(
                plan,
                samples,
                encoders,
                recipe.finetune.global_batch,
                recipe.finetune.curriculum,
                ledger.samples,
                0,
                1,
            )

        training = self.training(f"tune-{start}-{lr:g}-{seed}", plan, seed, encoders)
        _, history = training.run(model, steps, tokenizer)
        best = max(history, key=lambda epoch: epoch["hr1"])
        return {**best, "lr": lr}

    def training(self, name: str, plan: Plan, seed: int, encoders: Any = None) -> Training:
        """Returns a training in a folder of its own."""
        folder = self.state / name
        return Training(self.archive, folder, self.is_over, self.say, plan, seed, encoders)

    def score(self, name: str, uri: str | None) -> dict[str, Any]:
        """Scores the test split with a checkpoint, or the base; keeps the scores beside."""
        recipe = self.archive.recipe
        network, tokenizer = self.load_base()
        if uri is not None:
            network = adapter.load(network, Path(uri) / checkpoint.ADAPTER)
            if (folder := Path(uri) / BEHAVIOUR_FOLDER).exists():
                network = hybrid.load(network, folder)
        if torch.cuda.is_available():
            network = network.to("cuda")
        items = self.archive.items_by_index()
        encoders = build_encoders(
            tokenizer, recipe.model.max_tokens, network, items, self.archive.template
        )
        samples = self.archive.samples("test")
        method = choose_scoring(network, recipe.model.max_tokens)
        scores = score_samples(
            network, encoders.for_evaluation, samples, recipe.evaluate.batch, method
        )
        return self.keep_scores(name, scores)

    def train_sasrec(self, seed: int) -> dict[str, Any]:
        """Trains SASRec on the samples of fine-tuning, and scores the test split with it."""
        archive, settings = self.archive, self.archive.recipe.baseline
        validation = archive.samples("validation")
        longest = max(len(history) for history in validation["history"].to_pylist())
        torch.manual_seed(seed)
        network = baselines.build_network("sasrec", len(archive.items), longest, settings)

        def scores_of(current: Any, samples: Any) -> Floats:
            histories = [archive.to_numbers(h).tolist() for h in samples["history"].to_pylist()]
            candidates = archive.to_numbers(samples["candidates"].to_pylist())
            return baselines.score_candidates(current, histories, candidates)

        def measure(current: Any) -> float:
            ranks = compute_ranks(scores_of(current, validation), validation["target"].to_numpy())
            return float(hits(ranks, 1).mean())

        baselines.fit_network(network, archive.sequences, settings, seed, measure)
        weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        save_file(weights, self.state / f"sasrec-{seed}.safetensors")
        return self.keep_scores(f"sasrec-{seed}", scores_of(network, archive.samples("test")))

    def keep_scores(self, name: str, scores: Floats) -> dict[str, Any]:
        """Writes scores of the test split, and returns HR@k."""
        np.save(self.state / f"{name}.npy", scores)
        return {f"HR@{k}": float(self.test_hits(name, k).mean()) for k in CUTOFFS}

    def test_hits(self, name: str, k: int) -> Floats:
        """Returns which test users are hit at k by kept scores [users]."""
        targets = self.archive.samples("test")["target"].to_numpy()
        return hits(compute_ranks(np.load(self.state / f"{name}.npy"), targets), k)

    def load_base(self) -> tuple[Any, Any]:
        """Loads the base and its tokenizer."""
        return backbone.load(self.archive.base, None, self.archive.recipe.model.precision)

    def table(self) -> str:
        """Returns the table of what is scored, as Markdown."""
        rows = {
            "base, zero-shot": ["score-base"],
            "SASRec": [f"sasrec-{seed}" for seed in range(self.seeds)],
            "pre-trained, no fine-tuning": [f"score-pretrain-{s}" for s in range(self.seeds)],
            LLARA_ROW: [f"score-{LLARA}-{seed}" for seed in range(self.seeds)],
            "pre-trained, fine-tuned (CPRec)": [f"score-{CPREC}-{s}" for s in range(self.seeds)],
        }
        done = {row: [n for n in names if n in self.results] for row, names in rows.items()}
        reference = self.hits_of(done[LLARA_ROW])
        shown = [
            f"{self.archive.domain}, n = {len(self.archive.samples('test')):,}",
            "",
            "| model | seeds | HR@1 | HR@3 | HR@5 | HR@1 minus LLaRA's | p, users | p, seeds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row, names in done.items():
            if names:
                means = [self.hits_of(names, k).mean(axis=1) for k in CUTOFFS]
                cells = [f"{m.mean():.4f} ± {m.std(ddof=len(m) > 1):.4f}" for m in means]
                is_compared = len(reference) and names != done[LLARA_ROW]
                tests = compare(reference, self.hits_of(names)) if is_compared else [""] * 3
                shown.append(f"| {' | '.join([row, str(len(names)), *cells, *tests])} |")
        return "\n".join(shown)

    def hits_of(self, names: list[str], k: int = 1) -> Floats:
        """Returns the hits of seeds [seeds, users]."""
        return np.array([self.test_hits(name, k) for name in names], dtype=np.float64)


def compare(reference: Floats, model: Floats) -> list[str]:
    """Returns difference, p over users and p over seeds as cells; both are [seeds, users]."""
    over_users = paired_t_test(reference.mean(axis=0), model.mean(axis=0))
    over_seeds = compare_seeds(reference, model)
    p_seeds = "" if over_seeds is None else f"{over_seeds.p:.2g}"
    return [f"{over_users.difference:+.4f}", f"{over_users.p:.2g}", p_seeds]


def replace_text(file: Path, text: str) -> None:
    """Writes a file so that it is whole or as before, whatever happens."""
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(file)


def parse_keys(arguments: list[str]) -> dict[str, Any]:
    """Returns the values of a recipe's keys that a command line gives as `--key value`."""
    from cprec.config.recipe_file import iter_keys
    from cprec.config.typed_text import parse_text

    parser = argparse.ArgumentParser(allow_abbrev=False, usage="prepare RECIPE [--KEY VALUE ...]")
    types = {key.name: key.annotation for key in iter_keys()}
    for name in types:
        parser.add_argument(f"--{name}", dest=name)
    given = vars(parser.parse_args(arguments))
    return {name: parse_text(v, types[name]) for name, v in given.items() if v is not None}


def main(arguments: list[str] | None = None, now: Callable[[], float] = time.monotonic) -> int:
    """Runs a command; returns 0 if the study is done, else 3."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("prepare", "run", "show"))
    parser.add_argument("recipe", nargs="?", help="recipe of prepare")
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=Path("out/science"))
    parser.add_argument("--minutes", type=float, default=10.0, help="length of this visit")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--domain", help="domain to tune on; default: the first of data.held_out")
    parser.add_argument("--test-users", type=int, default=4000)
    options, keys = parser.parse_known_args(arguments)
    if keys and options.command != "prepare":
        parser.error(f"{keys[0]}: the archive has the keys of its recipe; prepare it anew")
    if options.command == "prepare":
        from cprec.config.recipe_file import load_recipe

        recipe = load_recipe(options.recipe, parse_keys(keys))
        domain = options.domain or recipe.data.held_out[0]
        prepare(recipe, domain, options.test_users, options.archive)
        print(f"{options.archive}: {options.archive.stat().st_size / 1e6:,.0f} MB")
        return 0
    end = now() + 60 * options.minutes
    state = options.state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    archive = Archive.unpack(options.archive, state / "archive")
    study = Study(archive, state, options.seeds, lambda: now() >= end)
    missing = ""
    if options.command == "run":
        try:
            study.run()
        except OutOfTimeError as stopped:
            missing = str(stopped)
    (state / "table.md").write_text(f"{study.table()}\n")
    print(study.table())
    if missing:
        print(f"the visit is over in {missing}; the same command goes on")
    return 3 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
