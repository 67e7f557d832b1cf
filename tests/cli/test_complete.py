"""FILE:LINE is the line that editors show under this number."""

from __future__ import annotations

from pathlib import Path

from mlx_gardener.cli.complete import _read_place


def test_form_feeds_and_other_separators_end_no_line(tmp_path: Path) -> None:
    lines = ["one = 1\n", "\x0c\n", "two = 'a\u2028b\x85c\x1c'\n", "three = 3\r\n", "four = 4\n"]
    (tmp_path / "a.py").write_bytes("".join(lines).encode())
    for number in range(1, 6):
        prefix, suffix, path = _read_place(f"a.py:{number}", tmp_path)
        read = [line.replace("\r\n", "\n") for line in lines]
        assert (prefix, suffix) == ("".join(read[: number - 1]), "".join(read[number:])), number
        assert path == "a.py"
