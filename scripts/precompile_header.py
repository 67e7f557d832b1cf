"""Precompile the header of MLX's CPU kernels, so that each takes 0.2 processor seconds to compile instead of half of one.

MLX compiles a kernel with g++ whenever it first meets a kind of elementwise work: some 30 in a training, over 200 in the tests,
kept in the folder for temporary files. GCC takes a precompiled header that lies beside the header by itself. It is listed among the
files of the installed package, so that whoever removes or updates that removes it too. Cost: 2 seconds and 50 MB, once.

Does nothing where MLX computes on a GPU or there is no g++.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from pathlib import Path

#: As MLX 0.32.4 compiles its kernels (a string in its library); with others GCC would not take the header.
FLAGS = ["-std=c++17", "-O3", "-Wall", "-fPIC"]
NAME = "compiled_preamble.h"


def main() -> None:
    """Make the header, unless it is there."""
    try:
        package = importlib.metadata.distribution("mlx-cpu")
    except importlib.metadata.PackageNotFoundError:
        return
    files = {file.name: Path(str(file.locate())) for file in package.files or ()}
    header, record = files.get(NAME), files["RECORD"]
    if header is None or shutil.which("g++") is None:
        return
    made, new = header.with_name(f"{NAME}.gch"), header.with_name(f"{NAME}.new")
    command = ["g++", *FLAGS, "-w", f"-I{header.parents[3]}", "-x", "c++-header", str(header), "-o", str(new)]
    if made.exists() or subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        return
    # Replaced, not written to: with uv it may be the same file as in other environments.
    listed = record.with_name("RECORD.new")
    listed.write_text(f"{record.read_text()}{made.relative_to(record.parents[1]).as_posix()},,\n")
    listed.replace(record)
    new.replace(made)


if __name__ == "__main__":
    main()
