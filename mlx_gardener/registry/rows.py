"""What each value of each row may be: asked wherever a row enters, from the file, a damaged one, or an archive.

Rows are data. SQLite keeps any value in any column, so one that was changed by hand, by a bit flip, or by a stranger
would else fail far from here, in whichever command met it first. In: a row. Out: what is wrong with it, a phrase.
Cost: microseconds a row, and its JSON parsed.
"""

from __future__ import annotations

import logging
import math
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_gardener.errors import GardenerError
from mlx_gardener.events import TrainingPhase
from mlx_gardener.platform.untrusted import parse_json
from mlx_gardener.registry.names import check_project_name, place_below

logger = logging.getLogger(__name__)

#: Seconds since the epoch from here on (the year 9000) are no times.
_LAST_TIME = 2.2e11
_STATUSES = ("queued", "training", "completed", "failed", "cancelled")
#: Numbers among a training's details, which views format as such.
_NUMBERS = frozenset(
    {"step", "total_steps", "loss", "tokens_per_second", "memory_bytes", "peak_bytes", "budget_bytes", "eta_seconds", "share"}
)  # fmt: skip
_TEXT = re.compile(r"[^\0\ud800-\udfff]*")

#: What is wrong with a value, a phrase that follows the column's name; empty where nothing is.
Check = Callable[[Any], str]


def _text(value: Any) -> str:
    return "" if isinstance(value, str) and _TEXT.fullmatch(value) else "is no text"


def _name(value: Any) -> str:
    try:
        return "" if isinstance(value, str) and check_project_name(value) else "is no name"
    except GardenerError:
        return "is no name"


def _path(value: Any) -> str:
    return _text(value) or ("" if Path(value).is_absolute() else "is no absolute path")


def _time(value: Any) -> str:
    return "" if _is_number(value) and 0 <= value < _LAST_TIME else "is no time"


def _whole(value: Any) -> str:
    return "" if isinstance(value, int) else "is no whole number"


def _count(value: Any) -> str:
    return "" if isinstance(value, int) and value >= 0 else "is no count"


def _flag(value: Any) -> str:
    return "" if value in (0, 1) else "is neither 0 nor 1"


def _process(value: Any) -> str:
    return "" if isinstance(value, int) and 0 < value < 2**31 else "is no process id"


def _seconds(value: Any) -> str:
    return "" if _is_number(value) and value >= 0 else "is no time"


def _percent(value: Any) -> str:
    return "" if _is_number(value) and 0 <= value <= 100 else "is not from 0 to 100"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(values: Iterable[str]) -> Check:
    known = frozenset(values)
    return lambda value: "" if isinstance(value, str) and value in known else "is unknown"


def _or_none(check: Check) -> Check:
    return lambda value: "" if value is None else check(value)


def _object(check: Check = lambda value: "") -> Check:
    """JSON text of an object, which ``check`` looks at."""

    def checked(value: Any) -> str:
        try:
            parsed = parse_json(value) if isinstance(value, str) else None
        except ValueError:
            parsed = None
        return check(parsed) if isinstance(parsed, dict) else "is no JSON object"

    return checked


def _metrics(found: dict[str, Any]) -> str:
    plain = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in found.values())
    return "" if plain else "holds something else than numbers"


def _details(found: dict[str, Any]) -> str:
    wrong = [
        name for name in _NUMBERS & found.keys() if found[name] is not None and not _number_like(found[name])
    ]
    return f"has a {wrong[0]} that is no number" if wrong else ""


def _number_like(value: Any) -> bool:  # a loss may be NaN
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _result(found: dict[str, Any]) -> str:
    if "adapter_version" in found and _name(found["adapter_version"]):
        return "has an adapter_version that is none"
    wrong = [
        name
        for name in ("metrics", "evidence", "training", "error")
        if not isinstance(found.get(name, {}), dict)
    ]
    return f"has a {wrong[0]} that is none" if wrong else ""


_COLUMNS: dict[str, dict[str, Check]] = {
    "projects": {
        "name": _name,
        "path": _path,
        "active": _flag,
        "active_adapter": _or_none(_text),
        "created_at": _time,
        "updated_at": _time,
    },
    "trainings": {
        "id": _name,
        "project": _name,
        "status": _one_of(_STATUSES),
        "phase": _one_of(TrainingPhase),
        "percent": _percent,
        "message": _text,
        "details": _object(_details),
        "run_dir": _text,
        "pid": _or_none(_process),
        "pid_started": _or_none(_seconds),
        "cancel_requested": _flag,
        "config": _object(),
        "result": _object(_result),
        "started_at": _time,
        "updated_at": _time,
        "finished_at": _or_none(_time),
    },
    "adapters": {
        "project": _name,
        "version": _name,
        "directory": _text,
        "base_model": _text,
        "metrics": _object(_metrics),
        "manifest_sha256": _text,
        "created_at": _time,
    },
    "queue": {
        "number": _whole,
        "project": _name,
        "priority": _whole,
        "config": _object(),
        "budget_bytes": _count,
        "fresh": _flag,
        "training_id": _or_none(_text),
        "begun": _count,
        "enqueued_at": _time,
    },
    "local_models": {"id": _text, "path": _path},
    "forgotten": {"project": _name, "path": _text, "forgotten_at": _time},
    "activations": {"number": _whole, "project": _name, "version": _name, "activated_at": _time},
}
#: Tables in the order in which rows of one belong to rows of those before.
TABLES = tuple(_COLUMNS)


def surrogates(data: bytes) -> str:
    """Text as SQLite has it, also where it is no UTF-8; `wrong_in` then says so. For ``Connection.text_factory``."""
    return data.decode(errors="surrogateescape")


def wrong_in(table: str, row: sqlite3.Row | Mapping[str, Any], home: Path | None = None) -> str:
    """What is wrong with a row, a phrase; empty where this program could have written it.

    Args:
        row: its columns, and perhaps more, which are nobody's concern.
        home: where its directories have to lie, links resolved; by their names only when None.
    """
    for column, check in _COLUMNS[table].items():
        if wrong := check(row[column]):
            return f"its {column} {wrong}"
    if table == "trainings":
        return _wrong_place(row, "run_dir", "runs", home) or _wrong_end(row)
    if table == "adapters":
        return _wrong_place(row, "directory", "adapters", home)
    return ""


def _wrong_place(row: sqlite3.Row | Mapping[str, Any], column: str, kind: str, home: Path | None) -> str:
    place, own = row[column], f"projects/{row['project']}/{kind}/"
    last = place.removeprefix(own)
    right = last == row["version"] if kind == "adapters" else not _name(last)
    if place.startswith(own) and right:
        try:
            if home is not None:
                place_below(home, place, row["project"])
            return ""
        except GardenerError:
            pass
    return f"its files lie outside of its home ({column} is {place!r})"


def _wrong_end(row: sqlite3.Row | Mapping[str, Any]) -> str:
    has_ended = row["status"] not in ("queued", "training")
    if has_ended == (row["finished_at"] is not None):
        return ""
    return "it has ended and has no end" if has_ended else "it has an end and has not ended"


def label(table: str, row: sqlite3.Row) -> str:
    """How a row is called in messages: its table, and what tells it from others."""
    keys = [column for column in ("project", "name", "version", "id", "path") if column in row.keys()]  # noqa: SIM118
    shown = "/".join(str(row[key])[:60] for key in keys[:2])
    return f"{table}: {shown!r}"


_named = set[tuple[str, str]]()


def readable(table: str, rows: Iterable[sqlite3.Row], home: Path | None = None) -> Iterator[sqlite3.Row]:
    """Rows that this program could have written; any other is left out, and named once in a process's log."""
    for row in rows:
        wrong = wrong_in(table, row, home)
        if not wrong:
            yield row
        elif (label(table, row), wrong) not in _named:
            _named.add((label(table, row), wrong))
            logger.warning(
                "A row of the registry is left out (%s): %s. `mlx-gardener registry repair` puts it out of use.",
                label(table, row),
                wrong,
            )
