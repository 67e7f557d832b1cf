"""What the server counts since its start, for Prometheus: kept and written by Prometheus' own client."""

from __future__ import annotations

from types import SimpleNamespace

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from mlx_gardener.retrieval import Context
from mlx_gardener.serve.generation import Ending

#: Of every name.
_PREFIX = "mlx_gardener"
#: Upper bounds of the histogram of times to the first piece of an answer, seconds.
_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters of one server, each by the name that it has in the text; any thread may count and read."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()  # not the process's, which other servers here would share
        self.requests = self._counter("requests", "Requests by path and status.", "path", "status")
        self.cancelled = self._counter("cancelled", "Requests whose client went away.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.cached_tokens = self._counter("cached_tokens", "Tokens of prompts that were not read again.")
        self.written_tokens = self._counter("written_tokens", "Tokens written.")
        self.decode_steps = self._counter("decode_steps", "Passes through a model that wrote tokens.")
        self.drafted_tokens = self._counter("drafted_tokens", "Tokens that were guessed and checked.")
        self.accepted_tokens = self._counter("accepted_tokens", "Of these, those that were right.")
        self.retrievals = self._counter("retrievals", "Prompts that code was looked for.")
        self.retrieved_chunks = self._counter("retrieved_chunks", "Chunks put in front of prompts.")
        self.retrieved_tokens = self._counter("retrieved_tokens", "Their tokens.")
        self.retrieval_seconds = self._counter("retrieval_seconds", "Seconds that looking for them took.")
        self.index_looks = self._counter("index_looks", "Times that a repository was looked at for changes.")
        self.index_changes = self._counter("index_changes", "Times that its index changed.")
        self.index_failures = self._counter("index_failures", "Times that it could not be indexed.")
        self.index_seconds = self._counter("index_seconds", "Seconds that all this took, beside the answers.")
        self.offers = self._counter("offers", "Answers whose lines are looked for later.")
        self.offers_without_file = self._counter(
            "offers_without_file", "Answers that are not, as their request names no file of the repository."
        )
        self.offers_lost = self._counter("offers_lost", "Answers that could not be kept for that.")
        self.looks = self._counter("looks", "Times that an answer's file was looked at.")
        self.look_failures = self._counter("look_failures", "Times that a project's could not be.")
        self.first_token_seconds = Histogram(
            "first_token_seconds",
            "From a request's arrival to the first piece of its answer.",
            namespace=_PREFIX,
            registry=self._registry,
            buckets=_BOUNDS,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=_PREFIX, registry=self._registry)

    def answered(self, ending: Ending) -> None:
        """Count a finished answer."""
        self.prompt_tokens.inc(ending.prompt_tokens)
        self.cached_tokens.inc(ending.cached_tokens)
        self.written_tokens.inc(ending.written_tokens)
        self.decode_steps.inc(ending.decode_steps)
        self.drafted_tokens.inc(ending.drafted_tokens)
        self.accepted_tokens.inc(ending.accepted_tokens)

    def retrieved(self, found: Context, seconds: float) -> None:
        """Count a search for code to put in front of a prompt, and what it found."""
        self.retrievals.inc()
        self.retrieved_chunks.inc(len(found.pieces))
        self.retrieved_tokens.inc(found.tokens)
        self.retrieval_seconds.inc(seconds)

    def text(self, gauges: dict[str, tuple[str, float]], counters: dict[str, tuple[str, float]]) -> bytes:
        """Everything in Prometheus' text format, with values that others know: name -> (help, value)."""
        told = list(self._registry.collect())
        for family in told:  # when each was made says nothing here, and would be a name more for each
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        for kind, values in ((CounterMetricFamily, counters), (GaugeMetricFamily, gauges)):
            told += [kind(f"{_PREFIX}_{name}", text, value) for name, (text, value) in values.items()]
        return generate_latest(SimpleNamespace(collect=lambda: told))
