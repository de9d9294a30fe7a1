"""Each notice is taken once."""

from types import SimpleNamespace

import pytest
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2.api.preemption import PreemptionInfo

from cprec.train.distributed import preemption
from cprec.train.distributed.preemption import PreemptionNotice, PreemptionNotices


def test_each_notice_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = PreemptionContext()
    context = SimpleNamespace(preemption_context=told)
    monkeypatch.setattr(preemption, "get_train_context", lambda: context)
    notices = PreemptionNotices()
    assert notices.take() is None
    told.preemption_info = PreemptionInfo(8_500, {"a": [1, 0]})
    assert notices.take() == PreemptionNotice([0, 1], 8.5)
    assert notices.take() is None
    told.preemption_info = PreemptionInfo(8_500, {"a": [1, 0], "b": [2]})
    assert notices.take() == PreemptionNotice([0, 1, 2], 8.5)
    told.preemption_info = PreemptionInfo(None, {"b": [2]})
    assert notices.take() == PreemptionNotice([2], None)
