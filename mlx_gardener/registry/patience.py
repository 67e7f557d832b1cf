"""Telling the registry what must be told, also while it cannot be written: again and again, ever more rarely.

For what ends a work of minutes or hours, which a few seconds of somebody else's transaction, or a full disk that is
being cleared, must not spoil. Cost: nothing where the first try succeeds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from mlx_gardener.errors import RegistryUnavailableError

logger = logging.getLogger(__name__)

#: Longer than any honest transaction, backup or repair, and than a person takes to clear a full disk (judgement).
PATIENCE_SECONDS = 900.0

T = TypeVar("T")


def patiently(tell: Callable[..., T], *arguments: Any, seconds: float = PATIENCE_SECONDS) -> T:
    """Do ``tell(*arguments)``, and do it again while the registry cannot be used at the moment; every failure is logged.

    Raises:
        RegistryUnavailableError: it could not be used for all of ``seconds``.
    """
    try:
        return tell(*arguments)
    except RegistryUnavailableError as error:
        logger.warning("%s", error)
    from tenacity import (
        Retrying,
        before_sleep_log,
        retry_if_exception_type,
        stop_after_delay,
        wait_random_exponential,
    )

    return Retrying(
        retry=retry_if_exception_type(RegistryUnavailableError),
        stop=stop_after_delay(seconds),
        wait=wait_random_exponential(multiplier=0.1, max=5.0),
        before_sleep=before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )(tell, *arguments)
