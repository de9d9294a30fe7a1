"""Records of runs for tests."""

from typing import Any

from cprec.runs.records import TraceRow


def trace_row(**fields: Any) -> TraceRow:
    """Returns a trace row of 128 samples from 0 on, with some fields replaced."""
    values = {
        "step": 0,
        "samples": 0,
        "batch_samples": 128,
        "phase": "stable",
        "lr": 1e-3,
        "loss": 1.0,
        "supervised_tokens": 900,
        "tokens": 30_000,
        "step_s": 1.0,
        "data_wait_s": 0.0,
        "sources": {"domain/A": 128},
        "ids_digest": "0" * 16,
    }
    return TraceRow.from_json({**values, **fields})
