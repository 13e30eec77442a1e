"""The service's Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters, gauges and histograms of one service."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter("captions_requests", "Requests for captions.", ["status"], registry=registry)
        self.seconds = Histogram(
            "captions_request_seconds", "Seconds per request for captions.", buckets=_SECONDS, registry=registry
        )
        self.pictures = Counter("captions_pictures", "Pictures by outcome.", ["outcome"], registry=registry)
        self.batches = Histogram(
            "captions_batch_pictures", "Pictures per forward pass.", buckets=_SIZES, registry=registry
        )
        self.loads = Counter("captions_model_loads", "Models that were swapped in.", registry=registry)
        self._queue = Gauge("captions_queue_pictures", "Pictures accepted and not answered.", registry=registry)
        self._model = Gauge("captions_model", "1 for the served version.", ["name", "version"], registry=registry)

    def watch_queue(self, admitted: Callable[[], int]) -> None:
        """Set the function that returns the number of pictures in the queue."""
        self._queue.set_function(admitted)

    def model_loaded(self, name: str, version: str) -> None:
        """Count a model that was swapped in."""
        self.loads.inc()
        self._model.clear()
        self._model.labels(name, version).set(1)

    def answered(self) -> int:
        """Return the number of requests for captions that got an answer or an error."""
        samples = [sample for metric in self.requests.collect() for sample in metric.samples]
        return round(sum(sample.value for sample in samples if sample.name.endswith("_total")))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
