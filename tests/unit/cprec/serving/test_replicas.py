"""People are told when replicas die and when others take their place."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cprec.serving.metrics import ServerMetrics


class SeenEnough(Exception):
    """Ends a watch, which never returns."""


# Ray Serve declares its settings in a deprecated way of pydantic.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_line_is_said_whenever_another_number_of_replicas_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from cprec.serving import replicas

    said: list[str] = []
    served: Any = SimpleNamespace(
        model=SimpleNamespace(label="version-2"), recipe=SimpleNamespace(workers=2)
    )
    watched = replicas.ServeReplicas(served, ServerMetrics(), said.append)
    seen = iter([2, 1, RayServeException("Serve is busy"), 1, None, 2, SeenEnough()])

    def status() -> Any:
        if isinstance(found := next(seen), Exception):
            raise found
        if found is None:
            return SimpleNamespace(applications={})
        deployment = SimpleNamespace(replica_states={"RUNNING": found, "STARTING": 1})
        application = SimpleNamespace(deployments={replicas.DEPLOYMENT: deployment})
        return SimpleNamespace(applications={watched._name: application})

    monkeypatch.setattr(replicas, "HEALTH_CHECK_S", 0)
    monkeypatch.setattr(serve, "status", status)
    with pytest.raises(SeenEnough):
        asyncio.run(watched._watch())
    assert said == [f"version-2: {running} of 2 replica(s) run" for running in (1, 0, 2)]
