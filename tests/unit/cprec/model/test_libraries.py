"""What a library refuses is the user's error; memory, disk, network and stores are faults."""

import errno
import json
import socket

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from safetensors.torch import load

from cluster.errors import DataError, RecipeError, RunError
from cprec.model.context_length import require_context
from cprec.model.libraries import refused_input


def decode_error() -> Exception:
    try:
        b"\xff".decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError


def unreachable_hub() -> Exception:
    """Returns what transformers raises of a name that is not cached, without a network."""
    error = OSError("We couldn't connect to the hub, and couldn't find it in the cached files")
    error.__cause__ = LocalEntryNotFoundError("cannot find the requested files")
    error.__cause__.__cause__ = ConnectionError("name or service not known")
    return error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Target modules not found"),
        RuntimeError("size mismatch"),
        KeyError("added_tokens"),
        ImportError("requires optimum"),
        SafetensorError("HeaderTooLarge"),
        NotImplementedError("no such layer"),
        AttributeError("no attribute"),
        TypeError("expected int"),
        IndexError("out of range"),
        AssertionError(),
        RecursionError("too deep"),
        json.JSONDecodeError("bad", "", 0),
        decode_error(),
        Exception("tokenizers: data did not match any variant"),
        OSError("it is not a valid JSON file"),
        FileNotFoundError(errno.ENOENT, "no such file"),
        PermissionError(errno.EACCES, "denied"),
        OfflineModeIsEnabled("HF_HUB_OFFLINE"),
    ],
    ids=repr,
)
def test_what_a_library_refuses_is_the_users_error(error: Exception) -> None:
    with (
        pytest.raises(RunError, match=rf"^model\.base: x: {type(error).__name__}") as raised,
        refused_input("model.base: x", RunError),
    ):
        raise error
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: device-side assert triggered"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        ConnectionResetError("reset"),
        TimeoutError("slow"),
    ],
    ids=repr,
)
def test_what_is_not_the_input_stays_a_fault(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, refused_input("model.base: x"):
        raise error
    assert raised.value is error


def test_a_hub_that_does_not_answer_is_told_with_the_name_that_was_looked_for() -> None:
    with pytest.raises(RecipeError) as raised, refused_input("model.base: own/model"):
        raise unreachable_hub()
    said = str(raised.value)
    assert said.startswith("model.base: own/model: it is no directory here, nothing of that name")
    assert "name or service not known" in said
    assert "correct the name" in said


def test_a_hub_is_asked_once_for_a_name_that_is_not_cached(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # it does not listen, and nobody else can meanwhile
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/{{repo_id}}/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
        with pytest.raises(RecipeError, match=r"own/mistyped: it is no directory here.*refused"):
            require_context("own/mistyped", None, 512)
    assert "Retrying" not in caplog.text


def test_an_error_that_hides_a_full_memory_is_a_fault() -> None:
    def convert() -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("conversion failed") from error

    with pytest.raises(ValueError, match="conversion"), refused_input("x"):
        convert()


def test_our_own_errors_stay_as_they_are() -> None:
    with pytest.raises(DataError, match=r"^mine$"), refused_input("x"):
        raise DataError("mine")


def test_a_long_message_is_cut_to_one_line() -> None:
    with pytest.raises(RecipeError) as raised, refused_input("x"):
        raise ValueError("line\n" * 1000)
    assert len(str(raised.value)) < 500
    assert "\n" not in str(raised.value)
    with pytest.raises(RecipeError, match="SafetensorError"), refused_input("x"):
        load(b"no tensors")
