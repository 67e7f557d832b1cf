"""A change of an editor's settings file: planned as text, applied whole, recorded, undone.

The record (0600, in the home) has the file as it was. Undoing puts that back byte for byte; where the file was edited since,
only what is still as it was written here is taken out again, and the rest is left and told. What a killed one leaves beside
the settings goes with the next one.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.editors import jsonc
from mlx_gardener.editors.plugins import COMMENTS, marks
from mlx_gardener.editors.settings import block_of, check_base, json_settings
from mlx_gardener.errors import ConfigError
from mlx_gardener.platform.beside import replace_file, sweep_beside
from mlx_gardener.platform.files import make_private, resolved
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_bytes, read_json

if TYPE_CHECKING:
    from mlx_gardener.model import CodeTokenizer

_MAX_SETTINGS_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Change:
    """What a settings file is and what it is to be.

    Attributes:
        before: its text, None where there is no such file.
        values: (keys, value) that are put in, for JSON; empty for lines between marks.
    """

    editor: str
    file: Path
    before: str | None
    after: str
    values: tuple[tuple[tuple[str, ...], Any], ...] = ()

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return self.before != self.after

    def diff(self) -> str:
        """The change as a unified diff."""
        before, after = (self.before or "").splitlines(), self.after.splitlines()
        return "\n".join(
            difflib.unified_diff(before, after, f"{self.file} (now)", f"{self.file} (then)", lineterm="")
        )


def plan_change(
    editor: str,
    file: Path,
    *,
    project: str,
    address: str,
    token: str | None,
    tokenizer: CodeTokenizer,
    home: Path,
) -> Change:
    """What connecting ``editor`` would change in ``file``; nothing is written, and what a killed connection left is swept.

    What an earlier connection wrote there, and nobody edited since, goes: a token that is no longer given does not stay.

    Raises:
        ConfigError: no editor can use the base, or the file cannot be read, or not be changed safely.
    """
    check_base(project, tokenizer)
    sweep_beside(resolved(file))
    before = _read(file)
    known = _read_record(_record(home, editor))
    ours = known is not None and known["file"] == str(file) and known["after"] == before
    after = (known["before"] if ours and known is not None else before) or ""
    if editor in COMMENTS:
        block = block_of(editor, project, address, token)
        return Change(editor, file, before, _with_block(after, block, editor))
    values = json_settings(editor, project, address, token, tokenizer)
    for keys, value in values:
        if jsonc.value_at(after, keys) != value:
            after = jsonc.put(after, keys, value)
    return Change(editor, file, before, after, tuple(values))


def apply(change: Change, home: Path) -> None:
    """Write a change and its record; connecting again keeps the record of how it was at first.

    Raises:
        ConfigError: the file was edited since the change was planned, or cannot be written.
    """
    if _read(change.file) != change.before:
        raise ConfigError(f"{change.file} was edited meanwhile.", next_step="Connect again.")
    record = _record(home, change.editor)
    known = _read_record(record)
    again = (
        known is not None
        and known["file"] == str(change.file)
        # As it was before, where the connection was killed before it wrote.
        and change.before in (known["after"], known["before"])
    )
    if known is not None and not again:
        raise ConfigError(
            f"{change.editor} is connected already, and its settings were edited since or lie elsewhere.",
            next_step=f"Run `mlx-gardener connect {change.editor} --undo` first.",
        )
    content = {
        "file": str(change.file),
        "before": known["before"] if known is not None else change.before,
        "after": change.after,
        "values": [[list(keys), value] for keys, value in change.values],
    }
    try:
        make_private(record.parent)
        # First: what is written can be undone.
        replace_file(record, json.dumps(content, ensure_ascii=False).encode(), mode=0o600)
        _write(change.file, change.after)
    except OSError as error:
        if known is None:
            record.unlink(missing_ok=True)
        raise ConfigError(
            f"{change.file} cannot be written ({error.strerror}).",
            next_step="Make it writable, or name another --file.",
        ) from error


def undo(editor: str, home: Path) -> tuple[Path, list[str]]:
    """Take a connection back; returns the file, and what was left because it was edited since.

    Raises:
        ConfigError: the editor is not connected, or the file cannot be read or written, or not be changed safely.
    """
    record = _record(home, editor)
    known = _read_record(record)
    if known is None:
        raise ConfigError(f"{editor} is not connected.", next_step="There is nothing to undo.")
    file = Path(known["file"])
    sweep_beside(resolved(file))
    left: list[str] = []
    now = _read(file)
    try:
        if now == known["after"]:
            if known["before"] is None:
                file.unlink()
            else:
                _write(file, known["before"])
        elif now not in (None, known["before"]):
            if editor in COMMENTS:
                text = _without_block(now, known["after"], editor)
            else:
                text, left = _without_values(now, known["before"] or "", known["values"])
            _write(file, text)
        record.unlink()
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written ({error.strerror}).", next_step="Make it writable."
        ) from error
    return file, left


def _without_values(now: str, before: str, values: list[list[Any]]) -> tuple[str, list[str]]:
    """``now`` with each value that is still ours as it was before; and the keys that are others' by now."""
    left = []
    for names, value in reversed(values):
        keys = tuple(names)
        if jsonc.value_at(now, keys) != value:
            left.append(".".join(keys))
            continue
        if jsonc.has(before, keys):
            now = jsonc.put(now, keys, jsonc.value_at(before, keys))
            continue
        now = jsonc.drop(now, keys)
        for length in range(len(keys) - 1, 0, -1):  # objects that were made for it
            above = keys[:length]
            if jsonc.value_at(now, above) == {} and not jsonc.has(before, above):
                now = jsonc.drop(now, above)
    return now, left


def _with_block(text: str, block: str, editor: str) -> str:
    start, end = _block(text, editor)
    if start >= 0:
        return text[:start] + block + text[end:]
    return text + ("" if not text or text.endswith("\n") else "\n") + block


def _without_block(now: str, written: str, editor: str) -> str:
    start, end = _block(now, editor)
    own_start, own_end = _block(written, editor)
    if start < 0:
        return now
    if now[start:end] != written[own_start:own_end]:
        raise ConfigError(
            "The lines between mlx-gardener's marks were edited since.", next_step="Take them out by hand."
        )
    return now[:start] + now[end:]


def _block(text: str, editor: str) -> tuple[int, int]:
    """Where the marked lines begin and end; -1, -1 where there are none."""
    first, last = marks(editor)
    start = text.find(first)
    end = text.find(last, start)
    if start < 0 or end < 0:
        return -1, -1
    end += len(last)
    return start, end + 1 if text[end : end + 1] == "\n" else end


def _read(file: Path) -> str | None:
    try:
        return read_bytes(file, max_bytes=_MAX_SETTINGS_BYTES).decode()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} cannot be read ({reason_of(error)}).", next_step="Name another --file."
        ) from error


def _write(file: Path, text: str) -> None:
    """Replace a file at once, where links lead, with the rights it had."""
    place = resolved(file)
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_file(place, text.encode(), mode=place.stat().st_mode & 0o777 if place.exists() else 0o644)


def _record(home: Path, editor: str) -> Path:
    return home / "editors" / f"{editor}.json"


def _read_record(record: Path) -> dict[str, Any] | None:
    try:
        known = read_json(record, max_bytes=4 * _MAX_SETTINGS_BYTES, follow_links=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The record of this connection cannot be read ({reason_of(error)}).",
            next_step="Take the settings out by hand.",
        ) from error
    return dict(known)
