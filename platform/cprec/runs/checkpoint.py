"""Checkpoints of runs and trials on storage, and their layout.

<run>/checkpoints/<samples>-<attempt>/
    adapter/                         the trained weights: a PEFT or Hugging Face directory, with
                                     prompt.json, which names the template of their prompts
    behaviour/                       trials of hybrid prompts: projector and item embeddings
    trainer/optimizer.safetensors    fp32 weights and Adam's moments, by name
    history.json                     trials: the epochs so far
    ledger.json                      what has been consumed, and the plan
    manifest.json                    size and SHA-256 of every other file, and of this list

A checkpoint is saved in this order:

1. Whoever saves it (`train.distributed.worker`, `downstream.trial`) writes a local folder.
   `save_training_state` writes trainer/; adapter/, behaviour/ and history.json are the saver's.
2. `commit` adds ledger.json, uploads the folder, and writes manifest.json last.

`commit` and `verify` take whatever files the folder has. So a new file needs a name here and code
that writes it before `commit`. Without a valid manifest a checkpoint does not exist.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import AccessDeniedError, PlatformFault, RunError, UserError
from cluster.storage import (
    exists,
    join,
    list_names,
    read_bytes,
    read_text,
    read_text_if_exists,
    sha256,
    upload,
)
from cprec.encode.prompt import PROMPT_FILE, PromptTemplate, parse_template
from cprec.model.adapter_config import adapter_uri
from cprec.model.adapter_files import ADAPTER_FOLDER
from cprec.runs.control.attempts import find_successor, list_attempts
from cprec.runs.control.fence import UNFENCED, RunWriter
from cprec.runs.records import FileDigest, Manifest
from cprec.schedule.ledger import Ledger

# Torch is imported late, by what reads or writes tensors: listing runs need not wait for it.
if TYPE_CHECKING:
    import torch

    from cprec.model.training_state import TrainingState

CHECKPOINTS = "checkpoints"
ADAPTER = ADAPTER_FOLDER
TRAINER = "trainer"
OPTIMIZER = f"{TRAINER}/optimizer.safetensors"
LEDGER = "ledger.json"
MANIFEST = "manifest.json"

WEIGHTS = "weights"
"""First part of the names of weights in the optimizer's file; moments have Adam's names there."""

STEPS = "steps"
"""Name of the number of optimizer steps in the optimizer's file."""


@dataclass(frozen=True, order=True)
class CheckpointName:
    """The name of a checkpoint's folder: `<samples>-<attempt>`, ordered from old to new.

    Attributes:
        samples: Samples seen when it was saved.
        attempt: Number of the start of the worker group that saved it.
    """

    samples: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.samples:012d}-{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> "CheckpointName | None":
        """Reads the name of a folder; None if the folder is not a checkpoint's."""
        match = re.fullmatch("([0-9]{12,})-([0-9]+)", text)
        return None if match is None else cls(int(match[1]), int(match[2]))


def checkpoint_uri(run_uri: str, name: CheckpointName) -> str:
    """Returns the folder (URI) of a checkpoint."""
    return join(run_uri, CHECKPOINTS, str(name))


def list_checkpoints(run_uri: str) -> list[CheckpointName]:
    """Lists the checkpoint folders of a run, newest first, complete or not."""
    names = map(CheckpointName.parse, list_names(join(run_uri, CHECKPOINTS)))
    return sorted((name for name in names if name is not None), reverse=True)


# -- saving


def is_due(
    samples_before: int, samples_after: int, every_samples: int, places: Iterable[int]
) -> bool:
    """Returns whether to save after a step: every so many samples, and at given places.

    Args:
        samples_before: Samples seen before the step.
        samples_after: Samples seen after it.
        every_samples: Samples between checkpoints.
        places: Samples at which a phase ends, and milestones.
    """
    return samples_before // every_samples < samples_after // every_samples or any(
        samples_before < place <= samples_after for place in places
    )


def save_training_state(state: "TrainingState", directory: Path) -> None:
    """Writes trainer/ below a local checkpoint folder."""
    import torch
    from safetensors.torch import save_file

    (directory / TRAINER).mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{kind}/{name}": tensor.contiguous()
        for kind, tensors_by_name in {WEIGHTS: state.weights, **state.moments}.items()
        for name, tensor in tensors_by_name.items()
    }
    save_file({**tensors, STEPS: torch.tensor(state.steps)}, directory / OPTIMIZER)


def commit(directory: Path, uri: str, ledger: Ledger, writer: RunWriter = UNFENCED) -> None:
    """Completes a local checkpoint folder and uploads it.

    The checkpoint exists from the moment at which its manifest is written.

    Args:
        directory: Local folder with the other files of the checkpoint.
        uri: Folder of the checkpoint on storage.
        ledger: What has been consumed.
        writer: What the manifest is written through.
    """
    (directory / LEDGER).write_text(json.dumps(ledger.to_json(), indent=1))
    digests = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            name = path.relative_to(directory).as_posix()
            digests[name] = FileDigest(size=len(content), sha256=sha256(content))
    upload(directory, uri)
    manifest = Manifest(files=digests, digest=digest_of_list(digests), lease=writer.number)
    writer.replace(join(uri, MANIFEST), json.dumps(manifest.to_json(), indent=1).encode())


def prune(
    run_uri: str,
    keep: int,
    phase_ends: tuple[int, ...],
    last_saved: CheckpointName,
    writer: RunWriter = UNFENCED,
    milestones: Iterable[int] = (),
) -> None:
    """Removes old checkpoints of a run, and what earlier attempts left half written below them.

    Checkpoints with more samples than the last saved one are neither removed nor counted. They
    belong to an attempt from which this one did not go on, because they were damaged or incomplete.
    The same holds for those that an attempt saved after a later one had begun.

    Args:
        run_uri: Folder of the run.
        keep: Number of complete checkpoints to keep, the newest.
        phase_ends: Samples at which a phase ends; checkpoints there are kept too.
        last_saved: The checkpoint that was just saved.
        writer: What is removed through.
        milestones: Samples from which on the first checkpoint is kept too.
    """
    attempts = list_attempts(run_uri)
    older = [name for name in list_checkpoints(run_uri) if name <= last_saved]
    written = [name for name in older if is_complete(run_uri, name)]
    complete = [
        name for name in written if find_successor(attempts, name.attempt, name.samples) is None
    ]
    # A later attempt may be writing to a folder of its own while this one, delayed, prunes.
    half_written = [
        name for name in older if name not in written and name.attempt < last_saved.attempt
    ]
    reached = [[name for name in complete if name.samples >= place] for place in milestones]
    kept = {min(names) for names in reached if names}
    for name in complete[keep:] + half_written:
        if name.samples not in phase_ends and name not in kept:
            # The manifest goes first: a folder that is half removed must not look complete.
            writer.remove(join(checkpoint_uri(run_uri, name), MANIFEST))
            writer.remove(checkpoint_uri(run_uri, name))


# -- loading


def verify(uri: str) -> None:
    """Checks that a checkpoint is complete and that every byte is as it was written.

    Raises:
        RunError: A file is missing or damaged; names the file.
    """
    for name, expected in _read_manifest(join(uri, MANIFEST)).files.items():
        file_uri = join(uri, name)
        try:
            content = read_bytes(file_uri)
        except AccessDeniedError:  # no damage: an older checkpoint would be no better
            raise
        except UserError:
            raise RunError(
                f"{file_uri}: listed in the manifest, but missing; the checkpoint is unusable"
            ) from None
        if (digest := sha256(content)) != expected.sha256:
            raise RunError(
                f"{file_uri}: sha256 is {digest[:16]}..., "
                f"the manifest says {expected.sha256[:16]}...; corrupt"
            )


def digest_of_list(files: Mapping[str, FileDigest]) -> str:
    """Returns the SHA-256 (hex) of a manifest's list of files."""
    entries = sorted((name, file.size, file.sha256) for name, file in files.items())
    return sha256(json.dumps(entries).encode())


def _leaves_folder(name: str) -> bool:
    """Returns whether a name in a manifest is not one of a file below the checkpoint's folder."""
    return name.startswith("/") or "://" in name or ".." in name.split("/")


def _read_manifest(uri: str) -> Manifest:
    """Reads a manifest, and checks that it lists what every checkpoint has.

    Raises:
        RunError: There is none, or it is damaged.
    """
    try:
        manifest = Manifest.from_json(json.loads(read_text(uri)))
    except AccessDeniedError:
        raise
    except UserError:
        raise RunError(f"{uri}: no such file; the checkpoint was never completed") from None
    except (ValueError, RecursionError):
        raise RunError(f"{uri}: not a manifest; the checkpoint is unusable") from None
    if outside := [name for name in manifest.files if _leaves_folder(name)]:
        raise RunError(f"{uri}: lists {outside[0]!r}, outside its folder; it is not used")
    # Earlier builds wrote no digest of the list itself.
    if manifest.digest not in (None, digest_of_list(manifest.files)):
        raise RunError(f"{uri}: its list of files is not as it was written; corrupt")
    for part in (LEDGER, f"{ADAPTER}/"):
        if not any(name.startswith(part) for name in manifest.files):
            raise RunError(f"{uri}: lists no {part}; the checkpoint is unusable")
    return manifest


def find_latest(run_uri: str) -> tuple[CheckpointName | None, list[str]]:
    """Finds the newest valid checkpoint of a run.

    Returns:
        (its name, what is wrong with each newer one). The name is None if no checkpoint was ever
        completed.

    Raises:
        RunError: There are manifests, but no checkpoint is valid. A run never starts over by
            itself.
    """
    problems: list[str] = []
    any_manifest = False
    # The attempts after the checkpoints: none of these is of an attempt that is not listed.
    names, attempts = list_checkpoints(run_uri), list_attempts(run_uri)
    for name in names:
        uri = checkpoint_uri(run_uri, name)
        if (successor := find_successor(attempts, name.attempt, name.samples)) is not None:
            problems.append(
                f"{uri}: attempt {successor.number} began before it, at "
                f"{successor.samples:,} samples; it does not count any more"
            )
            continue
        any_manifest = any_manifest or exists(join(uri, MANIFEST))
        try:
            verify(uri)
            return name, problems
        except RunError as error:
            problems.append(str(error))
    if any_manifest:
        raise RunError(
            "no valid checkpoint is left, and a run never starts over by itself:\n  "
            + "\n  ".join(problems)
            + "\nuse another --run"
        )
    return None, problems


def read_template(uri: str) -> PromptTemplate:
    """Reads in which template of the prompt a checkpoint, or a bare adapter, was trained.

    Raises:
        RunError: This release does not have it.
    """
    file = join(adapter_uri(uri), PROMPT_FILE)
    return parse_template(read_text_if_exists(file), file)


def latest_uri(run_uri: str) -> str:
    """Returns the newest valid checkpoint of a run.

    Raises:
        PlatformFault: There is none.
        RunError: There are manifests, but no checkpoint is valid.
    """
    name, problems = find_latest(run_uri)
    if name is None:
        raise PlatformFault(f"{run_uri}: no checkpoint was completed; {'; '.join(problems)}")
    return checkpoint_uri(run_uri, name)


def read_ledger(uri: str) -> Ledger:
    """Reads the ledger of a checkpoint."""
    return Ledger.from_json(json.loads(read_text(join(uri, LEDGER))))


def read_verified_ledger(uri: str) -> Ledger:
    """Reads the ledger of a checkpoint that is complete and undamaged; raises as `verify` does."""
    verify(uri)
    return read_ledger(uri)


def is_complete(run_uri: str, name: CheckpointName) -> bool:
    """Returns whether a checkpoint was saved to its end; its files may be damaged since."""
    return exists(join(checkpoint_uri(run_uri, name), MANIFEST))


def load_training_state(uri: str) -> "TrainingState":
    """Loads trainer/ of a checkpoint, onto the CPU."""
    from safetensors.torch import load

    from cprec.model.training_state import ADAM_MOMENTS, TrainingState

    tensors = load(read_bytes(join(uri, OPTIMIZER)))

    def tensors_of(kind: str) -> "dict[str, torch.Tensor]":
        prefix = f"{kind}/"
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }

    moments = {moment: tensors_of(moment) for moment in ADAM_MOMENTS}
    # A checkpoint from before the first step has no moments.
    moments = {moment: by_name for moment, by_name in moments.items() if by_name}
    return TrainingState(tensors_of(WEIGHTS), moments, int(tensors[STEPS]))
