"""Execute examples/first_adapter.ipynb again and keep its outputs: ``.venv/bin/python scripts/run_notebook.py``.

In: the notebook's cells; with STEPS=N in the environment it makes N updates instead of its own number. Out: the same
file with new outputs, without times and machine names; nothing is written where a cell fails. Takes some minutes
on two idle cores, and ends by itself after two hours.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "first_adapter.ipynb"


def execute(notebook: Path, *, timeout_seconds: int = 1200) -> Any:
    """The notebook with the outputs of running all its cells, in order, in a kernel of this Python."""
    import nbformat
    from nbclient import NotebookClient

    found = nbformat.read(notebook, as_version=4)
    # The kernel of this very interpreter, whatever kernels are installed on the machine.
    client = NotebookClient(found, timeout=timeout_seconds, kernel_name="python3", record_timing=False)
    client.create_kernel_manager()
    client.km.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client.execute(cwd=str(notebook.parent))
    return found


def main() -> None:
    """Execute it and write it back."""
    import nbformat

    found = execute(NOTEBOOK, timeout_seconds=7200)
    found.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    nbformat.write(found, NOTEBOOK)
    print(f"{NOTEBOOK.name}: {NOTEBOOK.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
