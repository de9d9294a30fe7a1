"""What Prometheus reads from a server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds of the latency's histogram."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Bounds of the batches' histogram."""


class ServerMetrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cprec_serve_requests",
            "Requests to /rank by HTTP status",
            ["status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "cprec_serve_seconds",
            "Seconds from a request to its ranking",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "cprec_serve_batch_requests",
            "Requests that were ranked together, seen by each of them",
            buckets=BATCHES,
            registry=self.registry,
        )
        self.under_way = Gauge(
            "cprec_serve_under_way", "Requests that wait for an answer", registry=self.registry
        )
        self.retries = Counter(
            "cprec_serve_retries",
            "Requests that were sent again because a replica died",
            registry=self.registry,
        )
        self.swaps = Counter(
            "cprec_serve_swaps",
            "Changes of the model, by outcome",
            ["outcome"],
            registry=self.registry,
        )
        self.model = Gauge(
            "cprec_serve_model", "1 for the model that answers", ["model"], registry=self.registry
        )

    def set_model(self, label: str) -> None:
        """Names the model that answers."""
        self.model.clear()
        self.model.labels(label).set(1)

    def to_text(self) -> bytes:
        """Returns all figures in Prometheus' text format."""
        return generate_latest(self.registry)
