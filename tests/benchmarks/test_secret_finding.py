"""The benchmark of finding secrets in short: the scan as it is, without the rules, and by another package."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import pytest


def test_scans_with_and_without_secrets_and_by_an_earlier_package_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    monkeypatch.delitem(sys.modules, "secret_finding", raising=False)
    benchmark = importlib.import_module("secret_finding")
    tree, earlier = tmp_path / "tree", tmp_path / "earlier"
    tree.mkdir()
    (tree / "a.py").write_text("def area(width, height):\n    return width * height\n")
    (tree / "b.py").write_text("password = 'aB3$kf92mZq1'\n")
    shutil.copytree(root / "mlx_gardener", earlier / "mlx_gardener")
    found = benchmark.measure(tree, {"now": root, "before": earlier}, 1)
    assert found["secrets"] == {"now": 1, "without": 0, "before": 1}
    assert found["chunks_kept"]["without"] > found["chunks_kept"]["now"]
    assert found["times"].keys() == {"without", "before"} and all(found["times"].values())
