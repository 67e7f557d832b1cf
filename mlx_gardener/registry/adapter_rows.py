"""Adapter versions put into the tables and taken out of them, within a transaction of the caller's. Cost: nothing."""

from __future__ import annotations

import sqlite3


def forget_adapter(connection: sqlite3.Connection, project: str, version: str) -> None:
    """Take an adapter version out of the tables; a project that had it active has none active."""
    connection.execute("DELETE FROM adapters WHERE project = ? AND version = ?", (project, version))
    connection.execute("DELETE FROM activations WHERE project = ? AND version = ?", (project, version))
    connection.execute(
        "UPDATE projects SET active_adapter = NULL WHERE name = ? AND active_adapter = ?", (project, version)
    )


def insert_adapter(
    connection: sqlite3.Connection,
    project: str,
    version: str,
    directory: str,
    values: tuple[str, str, str, float],
) -> None:
    """Put an adapter version into the tables.

    Args:
        directory: below the home.
        values: base model, metrics as JSON, sha256 of the manifest, and when it was made, seconds since the epoch.
    """
    connection.execute(
        "INSERT INTO adapters (project, version, directory, base_model, metrics, manifest_sha256, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (project, version, directory, *values),
    )
