"""The journal: what a run did is readable while it runs, after a crash, and from another process."""

from __future__ import annotations

import threading
from pathlib import Path

from mlx_gardener.events import WarningRaised
from mlx_gardener.runs.journal import JournalWriter, follow_journal, read_journal


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "events.jsonl")
    events = [WarningRaised("one"), WarningRaised("zwei \u2013 drei\n")]
    for event in events:
        writer(event)
    read, offset = read_journal(tmp_path / "events.jsonl")
    assert read == events
    assert read_journal(tmp_path / "events.jsonl", offset) == ([], offset)


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    JournalWriter(tmp_path / "events.jsonl")
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o077 == 0


def test_a_line_cut_off_by_a_crash_waits_and_a_foreign_one_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writer = JournalWriter(path)
    writer(WarningRaised("kept"))
    with path.open("ab") as file:
        file.write(b'{"event": "FromTheFuture", "x": 1}\nnot json\n{"event": "WarningRai')
    read, offset = read_journal(path)
    assert [event.message for event in read if isinstance(event, WarningRaised)] == ["kept"] and len(
        read
    ) == 1
    with path.open("ab") as file:
        file.write(b'sed", "message": "late"}\n')
    late, _ = read_journal(path, offset)
    assert [event.message for event in late if isinstance(event, WarningRaised)] == ["late"]


def test_a_missing_journal_has_no_events_yet(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "none.jsonl") == ([], 0)


def test_following_gives_everything_up_to_the_end(tmp_path: Path) -> None:
    path, over = tmp_path / "events.jsonl", threading.Event()

    def write() -> None:
        writer = JournalWriter(path)
        for number in range(100):
            writer(WarningRaised(str(number)))
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    messages = [event.message for event in follow_journal(path, is_over=over.is_set, poll_seconds=0.001)]
    thread.join()
    assert messages == [str(number) for number in range(100)]


def test_a_line_that_a_killed_writer_left_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "WarningRaised", "mess')
    JournalWriter(path)(WarningRaised("whole"))
    assert [event.message for event in read_journal(path)[0] if isinstance(event, WarningRaised)] == ["whole"]
