"""What the server counts, in Prometheus' text format (prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mlx_gardener.retrieval import Context
from mlx_gardener.serve.generation import Ending

#: Upper bounds of the histogram of times to the first piece of an answer, seconds.
_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class Metrics:
    """Counters since the start. Written by one thread each; read at any time."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0
    decode_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    retrievals: int = 0
    retrieved_chunks: int = 0
    retrieved_tokens: int = 0
    retrieval_seconds: float = 0.0
    index_looks: int = 0
    index_changes: int = 0
    index_failures: int = 0
    index_seconds: float = 0.0
    offers: int = 0
    offers_without_file: int = 0
    offers_lost: int = 0
    looks: int = 0
    look_failures: int = 0
    first_token_buckets: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))
    first_token_seconds: float = 0.0

    def answered(self, ending: Ending) -> None:
        """Count a finished answer."""
        self.prompt_tokens += ending.prompt_tokens
        self.cached_tokens += ending.cached_tokens
        self.written_tokens += ending.written_tokens
        self.decode_steps += ending.decode_steps
        self.drafted_tokens += ending.drafted_tokens
        self.accepted_tokens += ending.accepted_tokens

    def retrieved(self, found: Context, seconds: float) -> None:
        """Count a search for code to put in front of a prompt, and what it found."""
        self.retrievals += 1
        self.retrieved_chunks += len(found.pieces)
        self.retrieved_tokens += found.tokens
        self.retrieval_seconds += seconds

    def first_token(self, seconds: float) -> None:
        """Count the time from a request's arrival to the first piece of its answer."""
        self.first_token_seconds += seconds
        place = next((at for at, bound in enumerate(_BOUNDS) if seconds <= bound), len(_BOUNDS))
        self.first_token_buckets[place] += 1

    def text(self, gauges: dict[str, tuple[str, float]], counters: dict[str, tuple[str, float]]) -> str:
        """Everything, with values that others know: name -> (help, value)."""
        lines: list[str] = []
        _head(lines, "requests_total", "counter", "Requests by path and status.")
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'mlx_gardener_requests_total{{path="{path}",status="{status}"}} {count}')
        own = {
            "cancelled_total": ("Requests whose client went away.", self.cancelled),
            "prompt_tokens_total": ("Tokens of prompts.", self.prompt_tokens),
            "cached_tokens_total": ("Tokens of prompts that were not read again.", self.cached_tokens),
            "written_tokens_total": ("Tokens written.", self.written_tokens),
            "decode_steps_total": ("Passes through a model that wrote tokens.", self.decode_steps),
            "drafted_tokens_total": ("Tokens that were guessed and checked.", self.drafted_tokens),
            "accepted_tokens_total": ("Of these, those that were right.", self.accepted_tokens),
            "retrievals_total": ("Prompts that code was looked for.", self.retrievals),
            "retrieved_chunks_total": ("Chunks put in front of prompts.", self.retrieved_chunks),
            "retrieved_tokens_total": ("Their tokens.", self.retrieved_tokens),
            "retrieval_seconds_total": ("Seconds that looking for them took.", self.retrieval_seconds),
            "index_looks_total": ("Times that a repository was looked at for changes.", self.index_looks),
            "index_changes_total": ("Times that its index changed.", self.index_changes),
            "index_failures_total": ("Times that it could not be indexed.", self.index_failures),
            "index_seconds_total": ("Seconds that all this took, beside the answers.", self.index_seconds),
            "offers_total": ("Answers whose lines are looked for later.", self.offers),
            "offers_without_file_total": (
                "Answers that are not, as their request names no file of the repository.",
                self.offers_without_file,
            ),
            "offers_lost_total": ("Answers that could not be kept for that.", self.offers_lost),
            "looks_total": ("Times that an answer's file was looked at.", self.looks),
            "look_failures_total": ("Times that a project's could not be.", self.look_failures),
        }
        for kind, values in (("counter", {**own, **counters}), ("gauge", gauges)):
            for name, (text, value) in values.items():
                _head(lines, name, kind, text)
                lines.append(
                    f"mlx_gardener_{name} {value:g}" if value < 1e6 else f"mlx_gardener_{name} {value:.0f}"
                )
        name, total = "first_token_seconds", 0
        _head(lines, name, "histogram", "From a request's arrival to the first piece of its answer.")
        for bound, count in zip((*_BOUNDS, "+Inf"), self.first_token_buckets, strict=True):
            total += count
            lines.append(f'mlx_gardener_{name}_bucket{{le="{bound}"}} {total}')
        lines += [
            f"mlx_gardener_{name}_sum {self.first_token_seconds:g}",
            f"mlx_gardener_{name}_count {total}",
        ]
        return "\n".join(lines) + "\n"


def _head(lines: list[str], name: str, kind: str, text: str) -> None:
    lines += [f"# HELP mlx_gardener_{name} {text}", f"# TYPE mlx_gardener_{name} {kind}"]
