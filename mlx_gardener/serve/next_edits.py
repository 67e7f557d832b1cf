"""Answers to next-edit prompts in Sweep's form and in zeta2.1's, as Zed takes them: what replaces a window or some of it, or nothing.

In: a prompt that a client wrote whole. Out: what is made of the answer before the client gets it, or None for any other prompt. Zed
puts a line break behind a window that has none, and takes whatever comes back for the window (zed-industries/zed#62635): so an
answer gets as many line breaks at its end as the window had in the editor, one that changes nothing is empty, which Zed takes for
"no edit", and one that was cut off is empty, too, since Zed would delete what is missing. In zeta2.1's form an answer stays as it is
where it changes something; where not, or where it names no two places, which Zed would report as an error, it is empty. It is not
streamed. Cost: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mlx_gardener.dataset.edit_regions import ends_with_tag, tag, updated_by
from mlx_gardener.dataset.edit_steps import WINDOW_ABOVE, WINDOW_BELOW
from mlx_gardener.serve.generation import Ending, Piece

_MARK = "<|file_sep|>"
_ZETA_MIDDLE = "<[fim-middle]>"
_ROWS = WINDOW_ABOVE + 1 + WINDOW_BELOW
#: Makes of an answer, and of whether it ended by itself, what the client gets.
Finish = Callable[[str, bool], str]


def finish_of(prompts: Sequence[object]) -> Finish | None:
    """What is made of the answer to these prompts; None where they are no single next-edit prompt in one of the two forms."""
    if len(prompts) != 1 or not isinstance(prompt := prompts[0], str):
        return None
    if prompt.endswith(_ZETA_MIDDLE):
        return _zeta_finish(prompt.removesuffix(_ZETA_MIDDLE))
    at = prompt.rfind(_MARK)
    header = prompt[at + len(_MARK) :]
    path = header.removeprefix("updated/")
    if at < 0 or path == header or not path.endswith("\n") or path.count("\n") != 1:
        return None
    block = prompt[max(0, prompt.rfind(_MARK, 0, at)) : at]
    opening = f"{_MARK}current/{path}"
    if not block.startswith(opening):
        return None
    window = block[len(opening) :]
    return lambda text, ended: finished(window, text) if ended else ""


def _zeta_finish(prompt: str) -> Finish | None:
    """As `finish_of`, for a prompt up to the middle's marker: it ends with a window between tags, and code may have some, too."""
    at = prompt.rfind(tag(1))
    shown = prompt[at:]
    if at < 0 or not ends_with_tag(shown):
        return None

    def finish(text: str, ended: bool) -> str:
        found = updated_by(shown, text) if ended else None
        return text if found is not None and found[0] != found[1] else ""

    return finish


def finished(window: str, text: str) -> str:
    """A written window with the line breaks at its end that the editor's has; "" where nothing changes.

    Args:
        window: as the prompt shows it, with a line break at its end whether or not the editor's has one.
    """
    written = text.rstrip("\n")
    if written == window.rstrip("\n"):
        return ""
    return written + "\n" * line_breaks_at_end(window)


def line_breaks_at_end(window: str) -> int:
    """How many line breaks the editor's window ends with, of which the prompt shows ``window``.

    Several were there. One was where a row is missing, since the window's last is empty; with all 21 rows, and at the edge of a file,
    where this cannot be told, it was put there: an editor sees to a file's last line break itself.
    """
    shown = len(window) - len(window.rstrip("\n"))
    return shown if shown > 1 or window.count("\n") == _ROWS - 1 else 0


def whole_answer(events: Iterator[Piece | Ending], finish: Finish) -> Iterator[Piece | Ending]:
    """The events of an answer with all of its text in one piece, as ``finish`` makes it."""
    pieces: list[Piece] = []
    for event in events:
        if isinstance(event, Piece):
            pieces.append(event)
            continue
        text = finish("".join(piece.text for piece in pieces), event.reason == "stop")
        scores = tuple(score for piece in pieces for score in piece.scores)
        if text or scores:
            yield Piece(text, scores)
        yield event
