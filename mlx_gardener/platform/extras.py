"""How a part of this package that needs more packages (an extra of pyproject.toml) is installed, wherever it was installed before.

In: the extra's name. Out: a sentence for people. Cost: nothing.
"""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """Commands for the checkout, which is where this package is installed from."""
    wanted = f"'.[{extra}]'"
    tools = f"`pipx install --force {wanted}`, `uv tool install --force {wanted}`"
    return f"In the checkout {tools} or `pip install {wanted}` installs it."
