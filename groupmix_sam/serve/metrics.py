"""What Prometheus reads at /metrics; a registry for each server."""

from typing import TYPE_CHECKING

from ..errors import MissingExtraError

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
    from prometheus_client.core import CounterMetricFamily
    from prometheus_client.registry import Collector
except ImportError as e:
    raise MissingExtraError.of("prometheus_client", "serve") from e

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .engine import Engine

__all__ = ["Metrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Requests by route and status, the model's time by part, and the state of an engine."""

    def __init__(self, engine: "Engine") -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "groupmix_sam_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "groupmix_sam_request_seconds",
            "Seconds from a request's headers to its whole answer.",
            ["method", "route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.work = Histogram(
            "groupmix_sam_work_seconds",
            "Seconds that the model was at work, without waiting.",
            ["part"],
            buckets=SECONDS,
            registry=self.registry,
        )
        for name, text, value in (
            ("groupmix_sam_images", "Images whose embeddings are kept.", lambda: len(engine)),
            ("groupmix_sam_waiting", "Requests that wait or are computed.", lambda: engine.waiting),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)
        self.registry.register(_Evictions(engine))

    def text(self) -> bytes:
        """Return all in Prometheus' text format."""
        return generate_latest(self.registry)


class _Evictions(Collector):
    def __init__(self, engine: "Engine") -> None:
        self.engine = engine

    def collect(self) -> "Iterator[CounterMetricFamily]":
        """Yield the count that the engine has."""
        yield CounterMetricFamily("groupmix_sam_evictions", "Images that newer ones took the place of.", self.engine.evictions)
