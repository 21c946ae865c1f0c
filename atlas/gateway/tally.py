"""Counters and histograms that are written by one thread, the event loop's: the library's own take a lock for each of a dozen
additions a request, here they are plain.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]


class Tally(Collector):
    """A counter per set of label values."""

    def __init__(self, registry: CollectorRegistry, name: str, documentation: str, labels: Sequence[str]) -> None:
        self._about = (name, documentation, labels)
        self._sums: dict[Labels, float] = {}
        registry.register(self)

    def add(self, labels: Labels, amount: float = 1.0) -> None:
        self._sums[labels] = self._sums.get(labels, 0.0) + amount

    def describe(self) -> Iterator[Metric]:
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for labels, value in self._sums.items():
            family.add_metric(labels, value)
        yield family

    def _family(self) -> CounterMetricFamily:
        name, documentation, labels = self._about
        return CounterMetricFamily(name, documentation, labels=labels)


class Spread(Collector):
    """A histogram per set of label values; `bounds` are the buckets' upper ends, in order."""

    def __init__(
        self, registry: CollectorRegistry, name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        self._about = (name, documentation, labels)
        self._bounds = tuple(bounds)
        self._names = [*map(floatToGoString, self._bounds), "+Inf"]
        self._counts: dict[Labels, list[int]] = {}  # by bucket, the last one without an end
        self._sums: dict[Labels, float] = {}
        registry.register(self)

    def observe(self, labels: Labels, value: float) -> None:
        if labels not in self._counts:
            self._counts[labels], self._sums[labels] = [0] * len(self._names), 0.0
        self._counts[labels][bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def describe(self) -> Iterator[Metric]:
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for labels, counts in self._counts.items():
            buckets = zip(self._names, map(float, accumulate(counts)), strict=True)
            family.add_metric(labels, list(buckets), self._sums[labels])
        yield family

    def _family(self) -> HistogramMetricFamily:
        name, documentation, labels = self._about
        return HistogramMetricFamily(name, documentation, labels=labels)
