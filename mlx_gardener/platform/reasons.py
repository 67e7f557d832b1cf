"""Why something failed, in words for people: what the system said, without its number, its quotes and Python's names.

In: an exception. Out: a few words that stand in brackets after a sentence. Cost: nothing.
"""

from __future__ import annotations


def reason_of(error: BaseException) -> str:
    """``No such file or directory`` for an error of the system's, what it says for every other one."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(
        inner := getattr(error, "reason", None), BaseException
    ):  # urllib wraps what the system said
        return reason_of(inner)
    if isinstance(error, UnicodeDecodeError):
        return f"it is no {error.encoding.upper()} text, as byte {error.start:,} shows"
    if isinstance(error, ValueError) and str(error) == "embedded null byte":
        return "a name cannot hold a NUL"
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]} is missing"
    return str(error) or type(error).__name__
