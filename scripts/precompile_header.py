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
import tempfile
from pathlib import Path

#: As MLX 0.32.4 compiles its kernels (a string in its library); with others GCC would not take the header.
FLAGS = ["-std=c++17", "-O3", "-Wall", "-fPIC"]
NAME = "compiled_preamble.h"


def main() -> None:
    """Make the header, unless there is one that GCC takes."""
    try:
        package = importlib.metadata.distribution("mlx-cpu")
    except importlib.metadata.PackageNotFoundError:
        return
    files = {file.name: Path(str(file.locate())) for file in package.files or ()}
    header, record = files.get(NAME), files.get("RECORD")
    if header is None or record is None or shutil.which("g++") is None:
        return
    made = header.with_name(f"{NAME}.gch")
    with tempfile.TemporaryDirectory(dir=header.parent) as place:
        if made.exists() and is_taken(header, made, Path(place)):
            return
        new, listed = Path(place, "new"), Path(place, "RECORD")
        command = [
            "g++",
            *FLAGS,
            "-w",
            f"-I{header.parents[3]}",
            "-x",
            "c++-header",
            str(header),
            "-o",
            str(new),
        ]
        if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
            return
        lines = record.read_text(encoding="utf-8").splitlines()
        line = f"{made.relative_to(record.parents[1]).as_posix()},,"
        # Replaced, not written to: with uv it may be the same file as in other environments.
        listed.write_text(
            "\n".join([*(other for other in lines if other != line), line, ""]), encoding="utf-8"
        )
        listed.replace(record)
        new.replace(made)


def is_taken(header: Path, made: Path, place: Path) -> bool:
    """Whether GCC takes the precompiled header; it does not take another version's."""
    kernel = place / "kernel.cpp"
    kernel.write_text(f'#include "{header.relative_to(header.parents[3]).as_posix()}"\n', encoding="utf-8")
    command = [
        "g++",
        *FLAGS,
        "-w",
        "-H",
        "-c",
        f"-I{header.parents[3]}",
        str(kernel),
        "-o",
        str(place / "kernel.o"),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    return f"! {made}" in said  # GCC's mark of one that it takes


if __name__ == "__main__":
    main()
