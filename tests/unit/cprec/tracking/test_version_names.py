"""Names of versions: which of them may come to stand for another one."""

import pytest

from cprec.tracking.version_names import is_mutable_name


@pytest.mark.parametrize(
    "name", ["champion", "previous", "candidate", "models:/cprec@champion", "models:/a/candidate"]
)
def test_an_alias_is_mutable(name: str) -> None:
    assert is_mutable_name(name)


@pytest.mark.parametrize("name", ["3", "models:/cprec/3", "base", "s3://bucket/champion", "x"])
def test_a_version_and_a_place_stay(name: str) -> None:
    assert not is_mutable_name(name)
