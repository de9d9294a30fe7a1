"""Checkpoints on storage. A checkpoint without a valid manifest does not exist (contracts.md).

<run>/checkpoints/<samples>-<attempt>/
    adapter/        the trained part: a PEFT directory (train.model.adapter)
    trainer/        optimizer.safetensors: weights in fp32 and Adam's moments, by name
    ledger.json     what has been consumed, and the plan
    manifest.json   written last: size and sha256 of every file
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save_file

from cluster.errors import RunError, UserError
from cluster.storage import (
    exists,
    join,
    list_names,
    read_bytes,
    read_text,
    remove,
    sha256,
    upload,
    write_text,
)
from cprec.model.training_state import ADAM_MOMENTS, TrainingState
from cprec.runs.records import FileDigest, Manifest
from cprec.schedule.ledger import Ledger

CHECKPOINTS, ADAPTER, TRAINER, LEDGER, MANIFEST = (
    "checkpoints",
    "adapter",
    "trainer",
    "ledger.json",
    "manifest.json",
)
OPTIMIZER = f"{TRAINER}/optimizer.safetensors"
WEIGHTS, STEPS = "weights", "steps"


@dataclass(frozen=True, order=True)
class CheckpointName:
    """`<samples>-<attempt>`: newest is the one with most samples, then the latest attempt."""

    samples: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.samples:012d}-{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> "CheckpointName | None":
        """The name of a checkpoint's folder; None for any other folder."""
        samples, _, attempt = text.partition("-")
        return cls(int(samples), int(attempt)) if samples.isdigit() and attempt.isdigit() else None


def list_checkpoints(run_uri: str) -> list[CheckpointName]:
    """All checkpoint folders of a run, newest first, complete or not."""
    return sorted(
        (
            name
            for name in map(CheckpointName.parse, list_names(join(run_uri, CHECKPOINTS)))
            if name
        ),
        reverse=True,
    )


def checkpoint_uri(run_uri: str, name: CheckpointName) -> str:
    """Where a checkpoint lies."""
    return join(run_uri, CHECKPOINTS, str(name))


def save_training_state(state: TrainingState, directory: Path) -> None:
    """Write the optimizer's file below a local checkpoint folder."""
    (directory / TRAINER).mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{kind}/{name}": t.contiguous()
        for kind, ts in {WEIGHTS: state.weights, **state.moments}.items()
        for name, t in ts.items()
    }
    save_file({**tensors, STEPS: torch.tensor(state.steps)}, directory / OPTIMIZER)


def load_training_state(uri: str) -> TrainingState:
    """The optimizer's state of a checkpoint, on the CPU."""
    tensors = load(read_bytes(join(uri, OPTIMIZER)))

    def kind(prefix: str) -> dict[str, torch.Tensor]:
        return {
            name.removeprefix(f"{prefix}/"): t
            for name, t in tensors.items()
            if name.startswith(f"{prefix}/")
        }

    moments = {m: found for m in ADAM_MOMENTS if (found := kind(m))}
    return TrainingState(kind(WEIGHTS), moments, int(tensors[STEPS]))


def commit(directory: Path, uri: str, ledger: Ledger) -> None:
    """Upload a local checkpoint folder; it exists from the moment when the manifest, written last, is there."""
    (directory / LEDGER).write_text(json.dumps(ledger.to_json(), indent=1))
    digests = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            name = path.relative_to(directory).as_posix()
            digests[name] = FileDigest(size=len(content), sha256=sha256(content))
    upload(directory, uri)
    manifest = Manifest(files=digests)
    write_text(join(uri, MANIFEST), json.dumps(manifest.to_json(), indent=1))


def verify(uri: str) -> None:
    """Raises RunError, naming the file, unless the checkpoint is complete and every byte is as written."""
    try:
        manifest = Manifest.from_json(json.loads(read_text(join(uri, MANIFEST))))
    except UserError:
        raise RunError(f"{uri}: no {MANIFEST}; the checkpoint was never completed") from None
    except ValueError:
        raise RunError(
            f"{join(uri, MANIFEST)}: not a manifest; the checkpoint is unusable"
        ) from None
    for name, expected in manifest.files.items():
        try:
            content = read_bytes(join(uri, name))
        except UserError:
            raise RunError(
                f"{join(uri, name)}: listed in the manifest, but missing; the checkpoint is unusable"
            ) from None
        if sha256(content) != expected.sha256:
            raise RunError(
                f"{join(uri, name)}: sha256 is {sha256(content)[:16]}..., the manifest says {expected.sha256[:16]}...; corrupt"
            )


def read_ledger(uri: str) -> Ledger:
    """The ledger of a checkpoint."""
    return Ledger.from_json(json.loads(read_text(join(uri, LEDGER))))


def find_latest(run_uri: str) -> tuple[CheckpointName | None, list[str]]:
    """The newest valid checkpoint of a run, and what is wrong with each newer one.

    None if no checkpoint was ever completed. Raises RunError when there are manifests but none is valid: a run never silently starts over.
    """
    ignored: list[str] = []
    manifests = False
    for name in list_checkpoints(run_uri):
        uri = checkpoint_uri(run_uri, name)
        manifests = manifests or exists(join(uri, MANIFEST))
        try:
            verify(uri)
            return name, ignored
        except RunError as error:
            ignored.append(str(error))
    if manifests:
        raise RunError(
            "no valid checkpoint is left, and a run never starts over by itself:\n  "
            + "\n  ".join(ignored)
            + "\nuse another --run"
        )
    return None, ignored


def is_due(
    samples_before: int, samples_after: int, every_samples: int, phase_ends: tuple[int, ...]
) -> bool:
    """Whether to save after the step that took the samples from `before` to `after`: each `every` samples, and where a phase ends."""
    return samples_before // every_samples < samples_after // every_samples or any(
        samples_before < end <= samples_after for end in phase_ends
    )


def prune(run_uri: str, keep: int, phase_ends: tuple[int, ...], last_saved: CheckpointName) -> None:
    """Remove all but the `keep` newest checkpoints up to the one just saved and those at the ends of phases; manifests go first, so that no half one
    looks whole.

    What has more samples than the one just saved is of an attempt that this one did not go on from: it was ignored, and does not count.
    """
    complete = [
        name
        for name in list_checkpoints(run_uri)
        if name <= last_saved and exists(join(checkpoint_uri(run_uri, name), MANIFEST))
    ]
    for name in complete[keep:]:
        if name.samples not in phase_ends:
            remove(join(checkpoint_uri(run_uri, name), MANIFEST))
            remove(checkpoint_uri(run_uri, name))
