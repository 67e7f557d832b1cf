"""Where this package keeps what is its own: registry, adapters, caches.

In: the environment. Out: a directory; nothing is made. Cost: nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from mlx_gardener.errors import ConfigError


def default_home() -> Path:
    """``MLX_GARDENER_HOME``, also with ``~``, or the platform's directory for user data.

    Raises:
        ConfigError: it names the home directory of a user that does not exist.
    """
    named = os.environ.get("MLX_GARDENER_HOME")
    if not named:
        return Path(platformdirs.user_data_dir("mlx-gardener", appauthor=False))
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"MLX_GARDENER_HOME is {named!r}, and there is no such user.", next_step="Name a directory in it."
        ) from error
