"""Next edits as prompts, in the forms that editors speak and a base's markers allow.

``sweep``, for bases with Qwen's markers: recent changes, the window before the last edit, the window as it is, and the model writes
the window as it will be (Zed's crates/edit_prediction/src/sweep_prompt.rs; sweepai/sweep-next-edit). ``zeta2``, for Seed-Coder: what
follows the window, what was edited, the file up to the window, and the window between merge markers (Zed's crates/zeta_prompt,
V0211SeedCoder). ``zeta2.1``, for Seed-Coder as well: the same, but the window is in blocks between tags (`edit_regions`). Half of what
is learned on Seed-Coder has this form, as editors ask by either; evidence and `complete --edit` ask by zeta2, in which one text alone
is the right one. In: `EditExample`s. Out: token ids of prompt and answer, and `Document`s whose only targets are the answer. Cost:
tokenising.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import unified_diff
from typing import TYPE_CHECKING

from mlx_gardener.dataset.edit_regions import CURSOR, TAG_START, answer_of, with_tags
from mlx_gardener.dataset.edit_steps import RecentChange
from mlx_gardener.dataset.edits import EditExample
from mlx_gardener.dataset.rows import Document

if TYPE_CHECKING:
    from mlx_gardener.dataset.cache import TokenCache
    from mlx_gardener.model import CodeTokenizer

#: By the marker of a file: the form, and the marker of the text before a FIM span that it needs as well.
_FORMS = {"<|file_sep|>": ("sweep", "<|fim_prefix|>"), "<filename>": ("zeta2", "<[fim-prefix]>")}
#: What the model ends an answer of the form zeta2 with: the closing line of the merge markers around the window.
ZETA_END = ">>>>>>> UPDATED\n"
#: A marker's token id, or None, and the text that follows it.
_Part = tuple[int | None, str]


def edit_form(tokenizer: CodeTokenizer) -> str | None:
    """The form of next edits that a model's markers allow: "sweep", "zeta2" or None."""
    if tokenizer.file_id is None or tokenizer.markers is None:
        return None
    form, prefix = _FORMS.get(tokenizer.decode([tokenizer.file_id]), (None, None))
    return form if tokenizer.decode([tokenizer.markers.prefix]) == prefix else None


def learned_forms(form: str) -> tuple[str, ...]:
    """The forms in which a model learns whose form is ``form``."""
    return ("zeta2", "zeta2.1") if form == "zeta2" else (form,)


def _learned_form(example: EditExample, form: str) -> str:
    """The form in which an example is learned: one of several by chance, always the same."""
    forms = learned_forms(form)
    if TAG_START in example.current + example.updated:
        return form
    return forms[
        zlib.crc32(f"{example.commit}\0{example.path}\0{example.line}\0{example.caret}".encode()) % len(forms)
    ]


def ended(text: str) -> str:
    """``text`` with a line break at its end, as forms write a window."""
    return text if text.endswith("\n") else text + "\n"


def edit_prompt(
    example: EditExample, tokenizer: CodeTokenizer, most_tokens: int, form: str | None = None
) -> tuple[list[int], list[int]] | None:
    """Token ids of a prompt and of the answer without its end, together at most ``most_tokens``; None where they are more.

    Of the recent changes the oldest are left out where there is no room.

    Args:
        form: the model's own (`edit_form`) when None.
    """
    form = form or edit_form(tokenizer)
    assert form is not None

    def encode(texts: list[str]) -> list[list[int]]:
        return [tokenizer.encode(text) for text in texts]

    found = _encoded(example, tokenizer, form, encode, most_tokens)
    return None if found is None else (found[0], found[1])


def edit_documents(examples: Sequence[EditExample], cache: TokenCache, width: int) -> list[Document | None]:
    """A document for each example, None for those that do not fit into ``width`` tokens; only the answer is a target.

    On Seed-Coder half of them have the form zeta2.1.
    """
    import numpy as np

    tokenizer = cache.tokenizer
    form = edit_form(tokenizer)
    assert (
        form is not None and tokenizer.markers is not None
    )  # examples are only made for models that have one
    forms = [_learned_form(example, form) for example in examples]
    pairs = list(zip(examples, forms, strict=True))
    texts = [text for example, learned in pairs for text in _texts(example, tokenizer, learned)]
    cache.encode_many(texts)  # all at once, on all cores
    end = tokenizer.markers.end

    def encode(texts: list[str]) -> list[list[int]]:
        return [ids.tolist() for ids in cache.encode_many(texts)]

    made: list[Document | None] = []
    for example, learned in pairs:
        found = _encoded(example, tokenizer, learned, encode, width - 1)
        if found is None:
            made.append(None)
            continue
        prompt, answer = found
        tokens = np.array([*prompt, *answer, end], dtype=np.int32)  # (tokens,)
        mask = np.arange(len(tokens)) >= len(prompt)
        target_bytes = int(tokenizer.byte_lengths[tokens[mask]].sum())
        made.append(Document(tokens, mask, target_bytes, False))
    return made


def _encoded(
    example: EditExample,
    tokenizer: CodeTokenizer,
    form: str,
    encode: Callable[[list[str]], list[list[int]]],
    most_tokens: int,
) -> tuple[list[int], list[int]] | None:
    """See `edit_prompt`; ``encode`` gives the token ids of each text."""
    for left_out in range(len(example.changes) + 1):
        shown = replace(example, changes=example.changes[left_out:])
        parts = _parts(shown, tokenizer, form)
        *encoded, answer = encode(_texts(shown, tokenizer, form))
        prompt = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        for (marker, _), ids in zip(parts, encoded, strict=True):
            prompt += [*([] if marker is None else [marker]), *ids]
        if len(prompt) + len(answer) <= most_tokens:
            return prompt, answer
    return None


def _texts(example: EditExample, tokenizer: CodeTokenizer, form: str) -> list[str]:
    """The texts of a prompt's parts, and of the answer."""
    if form == "zeta2.1":
        answer = answer_of(example.current, example.updated, _caret(example))
    else:
        answer = ended(example.updated) + (ZETA_END if form == "zeta2" else "")
    return [*(text for _, text in _parts(example, tokenizer, form)), answer]


def _caret(example: EditExample) -> int:
    """Where the caret is taken to be: the character of the window at which its row ends."""
    return len("\n".join(example.current.split("\n")[: example.caret + 1]))


def _parts(example: EditExample, tokenizer: CodeTokenizer, form: str) -> list[_Part]:
    """What a prompt is made of, in order; the answer follows the last."""
    if form == "sweep":
        return _sweep(example, tokenizer)
    caret = _caret(example)
    if form == "zeta2.1":
        return _zeta(example, tokenizer, with_tags(example.current, caret) + "\n")
    window = f"{example.current[:caret]}{CURSOR}{example.current[caret:]}"
    return _zeta(example, tokenizer, f"<<<<<<< CURRENT\n{ended(window)}=======\n")


def _sweep(example: EditExample, tokenizer: CodeTokenizer) -> list[_Part]:
    """Each recent change, then the window before the last edit, as it is, and the heading of what it becomes: each as a file."""
    blocks = [
        f"{change.path}.diff\noriginal:\n{ended(change.original)}updated:\n{ended(change.updated)}"
        for change in example.changes
    ]
    blocks.append(f"original/{example.path}\n{ended(example.original)}")
    blocks.append(f"current/{example.path}\n{ended(example.current)}")
    return [(tokenizer.file_id, block) for block in (*blocks, f"updated/{example.path}\n")]


def _zeta(example: EditExample, tokenizer: CodeTokenizer, window: str) -> list[_Part]:
    """What stands below the window, then the recent changes as diffs, then the file down to the window, and the window itself.

    Args:
        window: as the form shows it.
    """
    markers = tokenizer.markers
    assert markers is not None
    above = ended(example.above) if example.above else ""
    history = "".join(_diff(change) for change in example.changes)
    return [
        # Zed's window ends before its last line break, which so stands in front of what follows.
        (markers.suffix, ended(f"\n{example.below}" if example.below else "")),
        (markers.prefix, ""),
        *([(tokenizer.file_id, f"edit_history\n{history}\n")] if history else []),
        (tokenizer.file_id, f"{example.path}\n{above}{window}"),
        (markers.middle, ""),
    ]


def _diff(change: RecentChange) -> str:
    """A recent change as Zed writes it in its edit history: a unified diff below the file's names."""
    lines = unified_diff(
        change.original.split("\n"),
        change.updated.split("\n"),
        f"a/{change.path}",
        f"b/{change.path}",
        lineterm="",
    )
    return "".join(f"{line}\n" for line in lines)
