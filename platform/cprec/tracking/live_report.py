"""What MLflow is told of a run under way: metrics of each step, and a report now and then."""

import time

from cluster.console import Say
from cluster.errors import UserError
from cprec.config.sections.services import CostSettings
from cprec.runs.records import TraceRow
from cprec.runs.run_records import RunRecords, read_run_records
from cprec.tracking.report import page
from cprec.tracking.report.content import Registered
from cprec.tracking.tracker import Tracker

REPORT_INTERVAL_S = 60.0
"""Seconds before the first report of a run under way, and between two reports, at least."""

REPORT_INTERVAL_RATIO = 60.0
"""How many times as long as it takes to make a report is waited before the next one, at least."""


class LiveReport:
    """Report page and schedule picture of a run under way, renewed now and then for MLflow."""

    def __init__(self, run_uri: str, settings: CostSettings, tracker: Tracker, say: Say) -> None:
        self._run_uri = run_uri
        self._settings = settings
        self._tracker = tracker
        self._say = say
        # Not at once: the first steps have enough to start as it is.
        self._next_refresh = time.monotonic() + REPORT_INTERVAL_S

    def refresh(self) -> None:
        """Renews them if it is time.

        The intervals are REPORT_INTERVAL_S, and longer where the records of a long run take long
        to draw. Storage that fails for a moment, or a damaged record, costs a picture, not the
        training.
        """
        began = time.monotonic()
        if began < self._next_refresh:
            return
        try:
            publish_report(read_run_records(self._run_uri), self._settings, self._tracker)
        except (OSError, UserError) as error:
            self._say(f"the report was not renewed: {error}")
        except Exception as error:  # whatever it is: no picture is worth a training
            self._say(f"the report was not renewed: {type(error).__name__}: {error}")
        duration = time.monotonic() - began
        self._next_refresh = began + max(REPORT_INTERVAL_S, REPORT_INTERVAL_RATIO * duration)


def publish_report(
    records: RunRecords,
    settings: CostSettings,
    tracker: Tracker,
    registered: Registered | None = None,
) -> None:
    """Writes the report of a run, and gives it to MLflow. Arguments are those of `page.write`."""
    for name, content in page.write(records, settings, registered).items():
        tracker.log_text(name, content)


def step_metrics(row: TraceRow) -> dict[str, float]:
    """Returns what MLflow records of a step; padding is not counted as tokens."""
    seconds = max(row.step_s + row.data_wait_s, 1e-9)
    return {
        "loss": row.loss,
        "lr": row.lr,
        "tflops": row.tflops,
        "memory_gb": row.memory_gb,
        "imbalance": row.imbalance,
        "tokens_per_s": row.tokens / seconds,
        "data_wait_share": row.data_wait_s / seconds,
    }
