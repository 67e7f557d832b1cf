"""Answers of base and adapter side by side: where the adapter gained most, and where it lost most.

In: the tasks, and what both arms wrote. Out: `Sample`s, with the code before each place. Cost: nothing.
"""

from __future__ import annotations

from typing import Any

from mlx_gardener.evaluate.evidence import Sample
from mlx_gardener.evaluate.measure import ArmResult, Tasks, line_of, value_of
from mlx_gardener.evaluate.metrics import edit_similarity

_CONTEXT_LINES = 8
#: Of those that gained most and of those that lost most: with their code they fill a screen (judgement).
_SAMPLES = 3


def side_by_side(base: ArmResult, adapter: ArmResult, tasks: Tasks) -> tuple[Sample, ...]:
    """The adapter's answers that gained most against the base's, and those that lost most, in this order."""
    samples: list[Sample] = []

    def add(kind: str, task: Any, first: str, second: str) -> None:
        target = task.target.rstrip()
        gain = edit_similarity(second, target) - edit_similarity(first, target)
        shown = "\n".join(task.prefix.rstrip("\n").split("\n")[-_CONTEXT_LINES:])
        samples.append(
            Sample(
                task.path, task.line, shown, task.target, first, second, kind, round(gain, 5) + 0.0
            )  # never -0.0
        )

    for line, before, after in zip(tasks.lines, base.lines, adapter.lines, strict=True):
        add("next_line", line, line_of(before), line_of(after))
    asked = {(line.path, line.line) for line in tasks.lines}
    for line, before, after in zip(tasks.cross_file, base.cross_file, adapter.cross_file, strict=True):
        if (line.path, line.line) not in asked:
            add("cross_file", line, line_of(before), line_of(after))
    for value, before, after in zip(tasks.assertions, base.assertions, adapter.assertions, strict=True):
        add("assertion", value, value_of(before, value), value_of(after, value))
    for span, before, after in zip(tasks.spans, base.spans, adapter.spans, strict=True):
        add("fim", span, before.text, after.text)
    ordered = sorted(samples, key=lambda sample: (-sample.gain, sample.path, sample.line, sample.kind))
    return (*ordered[:_SAMPLES], *ordered[_SAMPLES:][-_SAMPLES:])
