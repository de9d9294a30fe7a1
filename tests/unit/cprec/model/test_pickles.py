"""No pickle is ever loaded: not by its suffix, and not under the name of a safetensors file."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.errors import RecipeError, RunError
from cprec.config.sections.model import ModelSettings
from cprec.encode.prompt import TABLE1
from cprec.model import adapter, backbone
from cprec.model.adapter_files import ADAPTER_WEIGHTS, FULL_WEIGHTS
from cprec.runs import checkpoint
from tests.models import llama
from tests.unit.cprec.model.bases import write_base

# PEFT calls transformers by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture(params=["pickle", "torch"])
def pickled(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[bytes, Path]:
    """Weights as a pickle, of Python or of torch, and the file that loading them would create."""
    sprung = tmp_path / "sprung"
    if request.param == "pickle":
        return pickle.dumps(Trap(sprung)), sprung
    file = tmp_path / "weights.pt"
    torch.save({"model.norm.weight": Trap(sprung)}, file)
    return file.read_bytes(), sprung


def test_the_trap_springs(pickled: tuple[bytes, Path], tmp_path: Path) -> None:
    content, sprung = pickled
    file = tmp_path / "loaded"
    file.write_bytes(content)
    if content.startswith(b"PK"):
        torch.load(file, weights_only=False)
    else:
        pickle.loads(content)
    assert sprung.exists()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"]
)
def test_a_base_is_refused(pickled: tuple[bytes, Path], tmp_path: Path, name: str) -> None:
    content, sprung = pickled
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").unlink()
    (base / name).write_bytes(content)
    with pytest.raises(RecipeError, match=r"model\.base: .*safetensors"):
        backbone.load(str(base), None, "fp32")
    assert not sprung.exists()


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_trained_weights_are_refused(
    pickled: tuple[bytes, Path], tmp_path: Path, kind: str, suffix: str
) -> None:
    content, sprung = pickled
    directory = tmp_path / "adapter"
    settings = ModelSettings(lora_rank=4, adapter="lora" if kind == "lora" else "full")
    model = adapter.attach(llama(50), settings, 0)
    weights = {n: p.detach() for n, p in adapter.trainable_parameters(model).items()}
    adapter.save(model, weights, directory, "base", None, TABLE1)
    file = directory / (ADAPTER_WEIGHTS if kind == "lora" else FULL_WEIGHTS)
    file.unlink()
    file.with_suffix(suffix).write_bytes(content)
    for load in (adapter.load, adapter.load_for_training):
        with pytest.raises(RunError, match=r"does not fit|do not fit|no adapter directory"):
            load(llama(50), directory)
    assert not sprung.exists()


def test_optimizer_state_is_refused(pickled: tuple[bytes, Path], tmp_path: Path) -> None:
    content, sprung = pickled
    (tmp_path / "trainer").mkdir()
    (tmp_path / checkpoint.OPTIMIZER).write_bytes(content)
    with pytest.raises(Exception, match=r"(?i)header"):
        checkpoint.load_training_state(str(tmp_path))
    assert not sprung.exists()
