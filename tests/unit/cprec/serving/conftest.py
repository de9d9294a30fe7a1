"""The models that the tests of serving share."""

import pytest

from tests.unit.cprec.ranking import stored_models
from tests.unit.cprec.ranking.stored_models import Place

USERS = 1000


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return stored_models.write(tmp_path_factory.mktemp("serving"), USERS)
