"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server.

    Attributes:
        requests: finished requests for a prediction, by status.
        seconds: how long those took that were answered.
        model_seconds: how long the model needed for a picture.
        accepted: requests that wait or are being worked on.
        cancelled: requests whose client left or whose deadline passed.
    """

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "spatialflow_requests", "Requests for a prediction", ["status"], registry=registry
        )
        self.seconds = Histogram(
            "spatialflow_request_seconds",
            "Seconds from a request to its answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self.model_seconds = Histogram(
            "spatialflow_model_seconds",
            "Seconds the model took for a picture",
            buckets=_SECONDS,
            registry=registry,
        )
        self.accepted = Gauge(
            "spatialflow_accepted_requests", "Requests in the queue and at work", registry=registry
        )
        self.cancelled = Counter(
            "spatialflow_cancelled_requests",
            "Requests whose client left or whose deadline passed",
            registry=registry,
        )

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)
