"""The archive of a study: samples in the order of a plan, titles and the base, in one zip file.

Preparing it takes the whole platform, and reading it neither Ray nor Delta.

    study.json            the recipe, the plan, the domain and the template of the prompts
    titles.parquet        titles of the corpus, by item index
    plan.parquet          samples of pre-training, in the order of the plan
    <split>.parquet       samples of the domain: train (those of fine-tuning), validation, test
    sequences.json        training sequences of the domain, as its baselines see them
    base/                 the base model
"""

import json
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.encode.prompt import TEMPLATES, PromptTemplate
from cprec.schedule.plan import Plan

STUDY = "study.json"
BASE = "base"
SEQUENCES = "sequences.json"
COLUMNS = ("sample_id", "source", "history", "candidates", "target")
"""Columns of the samples that training and scoring read."""


@dataclass(frozen=True)
class Archive:
    """An archive that is unpacked.

    Attributes:
        folder: Where.
        recipe: The recipe of the study.
        plan: The plan of pre-training.
        domain: The domain to tune on.
        items: Index of each of its items in the corpus [items], ascending.
        template: Template of the prompts.
        titles: Titles by item index.
    """

    folder: Path
    recipe: Recipe
    plan: Plan
    domain: str
    items: NDArray[np.int64]
    template: PromptTemplate
    titles: tuple[str, ...]

    @classmethod
    def unpack(cls, file: Path, folder: Path) -> "Archive":
        """Reads an archive; its files are unpacked once."""
        if not (folder / STUDY).exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as place:
                with zipfile.ZipFile(file) as archive:
                    archive.extractall(place)
                shutil.copytree(place, folder, dirs_exist_ok=True, ignore=_all_but_last(STUDY))
                shutil.copy(Path(place) / STUDY, folder / STUDY)
        study = json.loads((folder / STUDY).read_text())
        return cls(
            folder,
            validate_recipe(study["recipe"], str(folder / STUDY)),
            Plan.from_json(study["plan"]),
            study["domain"],
            np.array(study["items"], dtype=np.int64),
            TEMPLATES[study["template"]],
            tuple(pq.read_table(folder / "titles.parquet")["title"].to_pylist()),
        )

    @property
    def base(self) -> str:
        """Directory of the base."""
        return str(self.folder / BASE)

    @property
    def sequences(self) -> list[list[int]]:
        """Training sequences of item numbers from 1 on."""
        sequences: list[list[int]] = json.loads((self.folder / SEQUENCES).read_text())
        return [self.to_numbers(sequence).tolist() for sequence in sequences]

    def samples(self, name: str) -> pa.Table:
        """Reads samples: `plan`, or a split of the domain."""
        return pq.read_table(self.folder / f"{name}.parquet", memory_map=True)

    def to_numbers(self, items: Any) -> NDArray[np.int64]:
        """Returns the numbers, from 1 on, of items of the domain."""
        return np.searchsorted(self.items, np.asarray(items)) + 1

    def items_by_index(self) -> dict[int, tuple[str, int]]:
        """Returns title and number, from 0 on, of every item of the domain by its index."""
        return {index: (self.titles[index], n) for n, index in enumerate(self.items.tolist())}


def prepare(recipe: Recipe, domain: str, test_users: int, out: Path) -> None:
    """Writes the archive of a recipe whose corpus is built; a tiny base is built if it is missing.

    Args:
        recipe: The recipe.
        domain: The domain to tune on.
        test_users: Users of its test split that are scored, at most.
        out: The archive.

    Raises:
        RecipeError: The plan replays text, or samples share tokens; the study can do neither.
    """
    # Only this function needs the whole platform.
    from cluster.console import print_line
    from cluster.errors import RecipeError
    from corpus.store.tables import Corpus
    from cprec.baselines.sequences import training_sequences
    from cprec.downstream.domain import Domain, select_whole_users, sort_by_id
    from cprec.model.base_files import ensure_local
    from cprec.model.base_uri import resolve_base
    from cprec.runs.run_planning import create_run_plan
    from cprec.stream.segments import read_plan_rows

    corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
    held = Domain.from_corpus(corpus, domain)
    if (
        recipe.schedule.replay_share
        or recipe.train.inexact_keys
        or recipe.model.adapter == "prompt"
    ):
        raise RecipeError(
            "a study has neither replayed text (schedule.replay_share) nor shared tokens "
            "(train.targets_per_pass, train.shared_candidates) nor soft prompts (model.adapter "
            "prompt); leave them out"
        )
    run_plan = create_run_plan(recipe, corpus)
    streams = corpus.streams_by_key()
    splits = {
        split: corpus.read_samples(held.source, split) for split in ("train", "validation", "test")
    }
    train = select_whole_users(splits["train"], recipe.finetune.max_samples)
    users = set(train["user_id"].to_pylist())
    known = {
        name: table.filter(pa.array([user in users for user in table["user_id"].to_pylist()]))
        for name, table in splits.items()
    }
    tables = {
        "plan": pa.concat_tables(
            [
                read_plan_rows(era, streams, era.start, era.stop).select(COLUMNS)
                for era in run_plan.plan.eras
                if era.stop > era.start
            ]
        ),
        "train": train,
        "validation": sort_by_id(splits["validation"], recipe.finetune.validation_users),
        "test": sort_by_id(splits["test"], test_users),
        "titles": pa.table({"title": corpus.read_titles()}),
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, table in tables.items():
            pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
        sequences = training_sequences(train, known["validation"], known["test"])
        (folder / SEQUENCES).write_text(json.dumps(sequences))
        base = ensure_local(
            resolve_base(recipe, corpus, print_line), recipe.model.revision, with_weights=True
        )
        shutil.copytree(base.path, folder / BASE)
        study = {
            "recipe": recipe.model_dump(mode="json"),
            "plan": run_plan.plan.to_json(),
            "domain": domain,
            "items": held.item_indices.tolist(),
            "template": corpus.prompt_template,
        }
        (folder / STUDY).write_text(json.dumps(study))
        with zipfile.ZipFile(out, "w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder))


def _all_but_last(name: str) -> Any:
    """Returns what tells `copytree` to leave out a file, which is copied when all others are."""
    return shutil.ignore_patterns(name)
