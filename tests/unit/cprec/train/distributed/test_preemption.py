"""Each notice is taken once, and the last step before its deadline saves."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
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


@given(step=st.floats(0.05, 30.0), save=st.floats(0.0, 60.0), notice_s=st.floats(1.0, 600.0))
def test_what_is_trained_after_the_last_checkpoint_is_about_a_step(
    step: float, save: float, notice_s: float
) -> None:
    """Plays a group that trains on until the deadline."""
    told = PreemptionContext()
    told.preemption_info = PreemptionInfo(int(notice_s * 1000), {"a": [0]})
    deadline = int(notice_s * 1000) / 1000
    now, saved_at, saves = 0.0, 0.0, 0
    with pytest.MonkeyPatch.context() as patch:
        context = SimpleNamespace(preemption_context=told)
        patch.setattr(preemption, "get_train_context", lambda: context)
        notices = PreemptionNotices()
        while now < deadline:
            is_notice = notices.take() is not None
            saves_now = notices.is_last_call(now) or is_notice
            now += step + save * saves_now
            if saves_now and now <= deadline:
                saved_at, saves = now, saves + 1
    enough = 3 * (step + save) + preemption.SLACK_S
    if notice_s > enough:
        assert deadline - saved_at <= step + save + preemption.SLACK_S + 1e-6
    # Where steps are much shorter than a save, few of the last ones save.
    assert saves <= 3 + (2 * (step + save) + preemption.SLACK_S) / (step + save)
