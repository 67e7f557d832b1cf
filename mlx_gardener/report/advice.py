"""What a verdict means and what to do now, in plain words: page, notebook and terminal say the same.

In: ``Evidence.to_json()`` of this version or an older one; of a run also what its training did. Out: sentences and the
commands that follow them, and a glossary of the words that evidence cannot do without. Cost: nothing to speak of.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mlx_gardener.evaluate.evidence import power_note, predicts_as_the_base
from mlx_gardener.evaluate.retrieval import retrieval_helps
from mlx_gardener.report.recipe import About, train_again
from mlx_gardener.report.story import answers, changes

#: Verdict: headline, and the sign it is recognised by without colour.
VERDICTS = {
    "promote": ("It helped.", "✓"),
    "inconclusive": ("No clear difference.", "≈"),
    "reject": ("It made things worse.", "✗"),
    "unmeasured": ("Not measured yet.", "·"),
}
#: Of an adapter that predicts code better and whose answers are not better: what its answers are, and what that means.
_NOT_BETTER = {
    "unclear": "are not measurably better yet",
    "unmeasured": "were not compared",
    "worse": "are worse",
}
_ANSWERS_MEAN = {
    "better": ", and what it writes is closer to what stands there.",
    "unclear": "; what it writes cannot be told from what the base writes.",
    "unmeasured": ". What it writes was not compared.",
    "worse": ", but what it writes is further from what stands there.",
}
#: Why an adapter that a guard failed is not used.
_FAILED = {
    "forgetting": "it got much worse at other projects' code",
    "memorisation": "it repeats its training files word for word, or has seen the files it was tested on",
    "parse_ok": "what it fills in parses less often",
}
#: Words that the evidence uses: term and what it means.
GLOSSARY = (
    ("base", "The model as it was before training."),
    ("adapter", "The base with what it learned from this repository."),
    (
        "retrieval (BM25)",
        "Nothing is trained: pieces of the repository that share words with the place (ranked by BM25, a standard search "
        "formula) are put in front of the prompt. It is what an adapter has to beat to be worth its training.",
    ),
    (
        "control",
        "The base with an adapter of another repository. Where it gains as much, the gain is practice with code and not "
        "knowledge of this repository.",
    ),
    (
        "bits per byte",
        "How well the model predicts code that it has not seen: so many bits it would need to write down a byte of it. Less "
        "is better, and models with other tokenizers can be compared.",
    ),
    (
        "95 % interval",
        "The range in which the change would lie in 95 of 100 such measurements. Where it includes zero, chance explains "
        "the change as well. Where nothing differed in any file it goes as far as files of which none was seen could differ.",
    ),
    (
        "answers",
        "What the model writes in all tasks together: how many are exactly right, how similar the rest is, and whether the "
        "repository's own names are in it. An adapter may predict code better and yet write nothing that is better: both "
        "are judged, and named apart where they part.",
    ),
    ("next line", "The model writes the next line of an unseen file; compared with the line that stands there."),
    (
        "cross-file line",
        "A next line that uses a name which another file of the repository defines, and this one does not.",
    ),
    ("assertion", "The model writes the value that an assertion in an unseen test compares with."),
    ("similarity", "How much of a line is the same: 100 % is the line itself, letter by letter."),
    ("span", "A piece is taken out of an unseen file, and the model fills it in from what is around it (FIM)."),
    (
        "F1",
        "Whether the right names of this repository are written: 100 % is all of them and no wrong ones, 0 % is none.",
    ),
    ("stops by itself", "The model ends what it fills in, instead of writing on until it is cut off."),
    ("guard", "Something that must not happen, however much better the rest became. One that fails keeps an adapter from use."),
)  # fmt: skip


_SERVE_WITH_RETRIEVAL = "mlx-gardener serve --retrieval on"
#: The difference in exact answers that is worth seeing.
_FIVE_POINTS = 0.05


@dataclass(frozen=True)
class Step:
    """Something to do: why or what, and the commands for it."""

    text: str
    commands: tuple[str, ...] = ()


def headline(evidence: Mapping[str, Any]) -> tuple[str, str]:
    """A verdict's sentence and sign."""
    verdict, state = str(evidence["verdict"]), answers(evidence)
    if verdict == "reject" and _failed(evidence) and not _is_loss(evidence):
        return "Not put to use: a check failed.", "✗"
    if verdict == "reject" and not _is_loss(evidence):
        return "Its answers are worse, and it does not predict your code better.", "✗"
    if verdict == "reject" and not _failed(evidence) and state == "better":
        return "It predicts your code worse, though its answers are better.", "✗"
    if verdict == "promote":
        beaten = _is_clearly_better(evidence, "base_bm25", "adapter")
        if state == "better":
            return f"It helped{', but retrieval alone helped more' * beaten}.", "✓"
        more = ", though retrieval alone does more" * beaten
        return f"It predicts your code better{more}; its answers {_NOT_BETTER[state]}.", "✓"
    if verdict == "inconclusive" and _is_gain(evidence):
        return "It predicts your code better, but its answers are worse.", "≈"
    if verdict == "inconclusive" and _is_the_base(evidence):
        return "It changed nothing.", "≈"
    if verdict == "inconclusive" and state == "better":
        return "Its answers are better; it does not clearly predict your code better.", "≈"
    return VERDICTS.get(verdict, (verdict.capitalize() + ".", "·"))


def meaning(evidence: Mapping[str, Any]) -> str:
    """What the verdict says about the adapter, for somebody who never saw one."""
    verdict, failed, state = evidence["verdict"], _failed(evidence), answers(evidence)
    unseen = "On files of this repository that it was not trained on, "
    if verdict == "promote":
        told = f"{unseen}the adapter predicts the code better than the base model alone, by more than chance explains"
        return f"{told}{_ANSWERS_MEAN[state]}"
    if verdict == "inconclusive" and _is_gain(evidence):
        return (
            f"{unseen}the adapter predicts the code better than the base model alone, but what it writes is further from what "
            "stands there, both by more than chance explains. It can be used; judge for yourself."
        )
    if verdict == "inconclusive" and _is_the_base(evidence):
        return (
            "The adapter predicts exactly what the base model does. After a training that is so where no update made the part "
            "that it validates on better: then none is kept."
        )
    if verdict == "inconclusive" and state == "better":
        return (
            f"{unseen}what the adapter writes is closer to what stands there than what the base model alone writes, by more "
            "than chance explains; how well it predicts the code cannot be told from the base. It can be used."
        )
    if verdict == "inconclusive":
        return (
            f"{unseen}the adapter cannot be told from the base model alone: chance explains the difference as well. It can be "
            "used; nothing proves that it helps."
        )
    if verdict == "reject" and failed and not _is_loss(evidence):
        reasons = " and ".join(_FAILED.get(name, name.replace("_", " ")) for name in failed)
        return f"After a training, an adapter like this one is kept but not put to use, because {reasons}."
    if verdict == "reject":
        how = "predicts the code worse" if _is_loss(evidence) else "writes worse answers"
        return (
            f"{unseen}the adapter {how} than the base model alone. After a training, an adapter like this one is kept but not "
            "put to use."
        )
    return (
        "Nothing says yet whether the adapter helps. It can be used, but it was not compared with its base."
    )


def next_steps(
    evidence: Mapping[str, Any], about: About, *, training: Mapping[str, Any] | None = None
) -> list[Step]:
    """What to do now, the most useful first.

    Args:
        about: what the commands name.
        training: ``TrainOutcome.to_json()``, where it is known: whether time ended it.
    """
    verdict, project = evidence["verdict"], about.project
    steps: list[Step] = []
    if verdict == "unmeasured":
        steps.append(Step("Measure it:", (f"mlx-gardener eval {project}",)))
    changes_nothing = verdict == "inconclusive" and _is_the_base(evidence)
    if changes_nothing:
        steps.append(
            Step(
                "Train more gently (a smaller learning rate), or see what it was trained on:",
                (
                    train_again(about, "--fresh", "--learning-rate", "0.0001"),
                    train_again(about, "--dry-run"),
                ),
            )
        )
    elif verdict in ("promote", "inconclusive", "unmeasured"):
        steps += _use(evidence, about)
    if verdict == "reject":
        steps.append(
            Step("Leave it: the version before it, if there is one, goes on being used:", (f"mlx-gardener show {project}",))
        )  # fmt: skip
    retrieval = _retrieval(evidence)
    steps += retrieval
    longer = _longer(about, training or {})
    if longer is not None and verdict != "reject":
        steps.append(longer)
    if verdict == "reject" or (verdict == "inconclusive" and _is_gain(evidence)):
        steps.append(
            Step(
                "Train more gently (fewer epochs, a smaller learning rate), or on a larger base:",
                (
                    train_again(about, "--fresh", "--epochs", "1"),
                    train_again(about, "--fresh", "--learning-rate", "0.0001"),
                    train_again(about, "--fresh", "--model", "auto", "--budget", "8"),
                ),
            )
        )
    elif verdict == "inconclusive" and not changes_nothing:
        steps.append(
            Step(
                "Or make the difference larger: more epochs, or a larger base. In a small repository too few files can be "
                "held out to show a small one.",
                (
                    train_again(about, "--fresh", "--epochs", "6", "--timeout", "0"),
                    train_again(about, "--fresh", "--model", "auto", "--budget", "8"),
                ),
            )
        )
    if verdict == "promote" and answers(evidence) == "unclear":
        if longer is None:
            offers_retrieval = not retrieval and _may_gain_by_retrieval(evidence)
            in_front = "put related code in front of the prompt, " * offers_retrieval
            steps.append(
                Step(
                    f"For better answers {in_front}train longer, or on a larger base:",
                    (
                        *(_SERVE_WITH_RETRIEVAL,) * offers_retrieval,
                        train_again(about, "--fresh", "--epochs", "6", "--timeout", "0"),
                        train_again(about, "--fresh", "--model", "auto", "--budget", "8"),
                    ),
                )
            )
        told = (evidence.get("answers_power") or {}).get("told", 1.0)
        # Of a base that is read from disk lines are read, and nothing is asked.
        if evidence.get("next_line_tasks") and told > _FIVE_POINTS:
            steps.append(
                Step("Ask for more answers, to see smaller differences:", (f"mlx-gardener eval {project} --thorough",))
            )  # fmt: skip
    if verdict != "unmeasured" and any(
        str(note).startswith("Not measured") for note in evidence.get("notes") or ()
    ):
        steps.append(Step("Measure what was cut off:", (f"mlx-gardener eval {project}",)))  # fmt: skip
    return steps


def _use(evidence: Mapping[str, Any], about: About) -> list[Step]:
    """How to use an adapter; in an editor only where its base can fill in the middle, and else why not, and what can."""
    use = "Use it" if evidence["verdict"] == "promote" else "Try it and judge for yourself"
    in_terminal = f"mlx-gardener complete {about.project} {_place(evidence, about)}"
    if about.has_fim is False:
        return [
            Step(f"{use}, in the terminal:", (in_terminal,)),
            Step(
                "For your editor, train on a base with fill-in-the-middle markers: this adapter's base has none, so it cannot "
                "complete in front of code that follows. The embedded one has them, and `mlx-gardener models` lists others:",
                (train_again(about, "--fresh", "--model", "seedling"),),
            ),
        ]
    return [
        Step(
            f"{use}: in the terminal, or in your editor (also vscode, vim, neovim):",
            (
                in_terminal,
                "mlx-gardener serve",
                f"mlx-gardener connect zed --project {about.project}",
            ),
        )
    ]


def _place(evidence: Mapping[str, Any], about: About) -> str:
    """A line to complete, as a shell takes it: of a sample, else in the largest held-out file of the kind that most files are."""
    for sample in evidence.get("samples") or ():
        if str(sample["path"]).isprintable():
            return shlex.quote(f"{sample['path']}:{sample['line']}")
    held_out = {path: 0 for path, entry in about.files.items() if entry[1:] == ["test"]}
    held_out |= {file["path"]: file.get("bytes", 0) for file in evidence.get("files") or ()}
    files = Counter(PurePosixPath(path).suffix for path in about.files or held_out)
    shown = [
        (files[PurePosixPath(path).suffix], size, path)
        for path, size in held_out.items()
        if path.isprintable()
    ]
    if shown:
        _, size, path = max(shown)
        # Lines have at most 100 characters on average (`source.filters`), so there is this one, mostly in the first functions.
        return shlex.quote(f"{path}:{max(2, size // 100)}")
    return "FILE:LINE"


def power(evidence: Mapping[str, Any]) -> str:
    """Whether files and answers were enough, in a sentence each; "" where it was not looked at."""
    return " ".join(told for told in (_files_power(evidence), _answers_power(evidence)) if told)


def _answers_power(evidence: Mapping[str, Any]) -> str:
    found = evidence.get("answers_power") or {}
    if not found:
        return ""
    tasks, told, needed = found["tasks"], found["told"], found["tasks_for_five"]
    seen = f"{tasks:,} answer{'s' * (tasks != 1)} to tasks in {found['files']:,} file{'s' * (found['files'] != 1)}"
    if told >= 1:
        return f"{seen} can tell no difference in how many are exactly right."
    shown = f"{seen} tell a difference of about {100 * told:.1f} points in how many are exactly right, four times of five"
    return f"{shown}." if told <= _FIVE_POINTS else f"{shown}; 5 points take about {needed:,} like these."


def _files_power(evidence: Mapping[str, Any]) -> str:
    found = evidence.get("power") or {}
    if not found:
        return ""
    if "files_seen" not in found:
        return str(found.get("note") or "")
    told_apart = _is_gain(evidence) or _is_loss(evidence) or found.get("metric") != "bits_per_byte"
    return power_note(found["files_seen"], found.get("files_needed"), told_apart=told_apart)


def _failed(evidence: Mapping[str, Any]) -> list[str]:
    return [guard["name"] for guard in evidence.get("guards") or () if not guard["passed"]]


def _is_loss(evidence: Mapping[str, Any]) -> bool:
    low = (evidence.get("metrics") or {}).get("bits_per_byte_change_low")
    return isinstance(low, int | float) and low > 0


def _is_gain(evidence: Mapping[str, Any]) -> bool:
    high = (evidence.get("metrics") or {}).get("bits_per_byte_change_high")
    return isinstance(high, int | float) and high < 0


def _is_the_base(evidence: Mapping[str, Any]) -> bool:
    """Whether no file was predicted otherwise than by the base."""
    return predicts_as_the_base(evidence.get("metrics") or {}, evidence.get("files") or ())


def _is_clearly_better(evidence: Mapping[str, Any], arm: str, against: str) -> bool:
    """Whether an arm's bits per byte are fewer than another's by more than chance explains."""
    for item in changes(evidence):
        if item.metric == "bits_per_byte" and (item.arm, item.against) == (arm, against):
            return item.better is True
        if item.metric == "bits_per_byte" and (item.against, item.arm) == (arm, against):
            return item.better is False
    return False


def _may_gain_by_retrieval(evidence: Mapping[str, Any]) -> bool:
    """Whether to ask for retrieval with the adapter: where it helped `serve` has it on already, and where it lost it is no gain."""
    loses = _is_clearly_better(evidence, "adapter", "adapter_bm25")
    loses = loses or answers(evidence, "adapter_bm25", "adapter") == "worse"
    return not loses and not retrieval_helps(evidence)[0]


def _retrieval(evidence: Mapping[str, Any]) -> list[Step]:
    """Retrieval where it clearly gains: instead of an adapter that is left, or with one, if that is not done already."""
    if evidence["verdict"] == "reject":
        if _is_clearly_better(evidence, "base_bm25", "base"):
            told = "let your editor send related code along with the prompt (docs/serve.md, input_extra)"
            return [Step(f"Use retrieval with the base alone, which clearly helped: {told}.")]
        return []
    if _is_clearly_better(evidence, "base_bm25", "adapter") and _may_gain_by_retrieval(evidence):
        how = "related code of the repository is put in front of the prompt (docs/serve.md, Retrieval):"
        told = f"Retrieval alone did better than the adapter, so use both: {how}"
        return [Step(told, (_SERVE_WITH_RETRIEVAL,))]
    return []


def _longer(about: About, training: Mapping[str, Any]) -> Step | None:
    """To train on, where the time limit ended a training before its last update."""
    plan = training.get("time_plan") or {}
    done, whole = training.get("steps", 0), plan.get("all_updates") or training.get("total_steps", 0)
    if not str(training.get("stopped_because", "")).startswith("the time limit") or done >= whole:
        return None
    return Step(
        f"Train longer: the time limit ended the training after {done:,} of {whole:,} updates. The same settings go on "
        "with the others; 0 minutes is no limit:",
        (train_again(about, "--timeout", "0"),),
    )
