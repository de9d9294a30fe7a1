"""A user error in a replica stays a user error, and anything else is shown whole."""

import traceback

import pytest

from cluster.errors import CprecError, DataError, PlatformFault, RecipeError
from cprec.serving.failures import find_load_error


def told_by_serve(error: Exception) -> str:
    """Returns what Serve keeps of an error: a traceback inside the message of another one."""
    try:
        raise error
    except Exception:
        inner = traceback.format_exc()
    return (
        f"The deployment failed to start 1 times in a row. Error:\nray::X()\nRuntimeError: {inner}"
    )


@pytest.mark.parametrize("kind", [RecipeError, DataError, PlatformFault])
def test_an_error_of_ours_is_found(kind: type[CprecError]) -> None:
    found = find_load_error("version-2", told_by_serve(kind("model.base: /x: too short")))
    assert type(found) is kind
    assert str(found) == "version-2 was not loaded: model.base: /x: too short"


def test_any_other_error_is_a_fault_with_its_traceback() -> None:
    found = find_load_error("version-2", told_by_serve(MemoryError("no room")))
    assert type(found) is PlatformFault
    assert "MemoryError: no room" in str(found)
    assert "Traceback" in str(found)
