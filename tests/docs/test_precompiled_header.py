"""The header of MLX's kernels that the two commands precompile: taken by the compiler, and leaving with MLX."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "precompile_header.py"


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++"), reason="MLX compiles no kernels by g++ here"
)
def test_the_compiler_takes_the_precompiled_header_as_mlx_calls_it(tmp_path: Path) -> None:
    for _ in range(2):  # the second time there is nothing to do
        subprocess.run([sys.executable, str(SCRIPT)], check=True)
    files = importlib.metadata.distribution("mlx-cpu").files or []
    (made,) = (Path(str(file.locate())) for file in files if file.name.endswith(".gch"))
    library = next(Path(str(file.locate())) for file in files if file.name == "libmlx.so")
    found = re.search(rb"(g\+\+ -std[^{}\0]+)", library.read_bytes())
    assert found is not None
    kernel = tmp_path / "kernel.cpp"
    kernel.write_text('#include "mlx/backend/cpu/compiled_preamble.h"\n')
    command = [
        *found[1].decode().split(),
        "-H",
        f"-I{made.parents[3]}",
        str(kernel),
        "-o",
        str(tmp_path / "a.so"),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert f"! {made}" in said, said  # GCC's mark of one that it takes; "x" is one that it does not
