"""The schema of the registry's database: its versions, each made from the one before, and whether a database has it.

In: a connection. Out: a database of the version asked for, and what one has too little or too much. Cost: about a
millisecond for a database made anew.
"""

from __future__ import annotations

import sqlite3

#: Each entry takes the schema one version further; ``PRAGMA user_version`` says how many have been applied.
_MIGRATIONS = (
    """
    CREATE TABLE projects (
        name TEXT PRIMARY KEY,
        path TEXT NOT NULL,
        active INTEGER NOT NULL DEFAULT 0,
        active_adapter TEXT,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL
    );
    CREATE UNIQUE INDEX one_active_project ON projects(active) WHERE active = 1;
    CREATE TABLE trainings (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        project TEXT NOT NULL REFERENCES projects(name) ON DELETE CASCADE,
        status TEXT NOT NULL,
        phase TEXT NOT NULL,
        percent REAL NOT NULL,
        message TEXT NOT NULL,
        details TEXT NOT NULL,
        run_dir TEXT NOT NULL,
        pid INTEGER,
        pid_started REAL,
        cancel_requested INTEGER NOT NULL DEFAULT 0,
        config TEXT NOT NULL,
        result TEXT NOT NULL,
        started_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        finished_at REAL
    );
    CREATE INDEX trainings_of_project ON trainings(project, number);
    CREATE UNIQUE INDEX one_live_training ON trainings(project) WHERE status IN ('queued', 'training');
    CREATE TABLE adapters (
        project TEXT NOT NULL REFERENCES projects(name) ON DELETE CASCADE,
        version TEXT NOT NULL,
        directory TEXT NOT NULL,
        base_model TEXT NOT NULL,
        metrics TEXT NOT NULL,
        manifest_sha256 TEXT NOT NULL,
        created_at REAL NOT NULL,
        PRIMARY KEY (project, version)
    );
    """,
    """
    CREATE TABLE queue (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        project TEXT NOT NULL UNIQUE REFERENCES projects(name) ON DELETE CASCADE,
        priority INTEGER NOT NULL,
        config TEXT NOT NULL,
        budget_bytes INTEGER NOT NULL,
        fresh INTEGER NOT NULL,
        training_id TEXT,
        begun INTEGER NOT NULL DEFAULT 0,
        enqueued_at REAL NOT NULL
    );
    """,
    """
    CREATE TABLE local_models (
        id TEXT PRIMARY KEY,
        path TEXT NOT NULL
    );
    CREATE TABLE forgotten (
        project TEXT NOT NULL REFERENCES projects(name) ON DELETE CASCADE,
        path TEXT NOT NULL,
        forgotten_at REAL NOT NULL,
        PRIMARY KEY (project, path)
    );
    """,
    """
    CREATE TABLE activations (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        project TEXT NOT NULL REFERENCES projects(name) ON DELETE CASCADE,
        version TEXT NOT NULL,
        activated_at REAL NOT NULL
    );
    CREATE INDEX activations_of_project ON activations(project, number);
    INSERT INTO activations (project, version, activated_at)
        SELECT name, active_adapter, updated_at FROM projects WHERE active_adapter IS NOT NULL;
    """,
)


def apply_migrations(connection: sqlite3.Connection, upto: int = len(_MIGRATIONS)) -> None:
    """Take a database, whose ``user_version`` may be any from 0, to version ``upto``; in the caller's transaction."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, migration in enumerate(_MIGRATIONS[version:upto], start=version + 1):
        for statement in migration.split(";"):
            if statement.strip():
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")


def schema_of(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Kind, name and statement of everything in a database but SQLite's own tables."""
    rows = connection.execute(
        "SELECT type, name, coalesce(sql, '') FROM sqlite_master WHERE name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    )
    return {(row[0], row[1], row[2]) for row in rows}


def schema_difference(connection: sqlite3.Connection) -> str:
    """What a database of the newest version has too little or too much, a phrase; empty where it is as it should be."""
    ours = sqlite3.connect(":memory:", isolation_level=None)
    try:
        apply_migrations(ours)
        wanted, found = schema_of(ours), schema_of(connection)
    finally:
        ours.close()
    names = {
        what: sorted(f"{kind} {name}" for kind, name, _ in entries)
        for what, entries in (
            ("is without or has another", wanted - found),
            ("has a foreign", found - wanted),
        )
    }
    return next((f"it {what} {', '.join(which)}" for what, which in names.items() if which), "")


def newest_version() -> int:
    """The ``user_version`` this program writes."""
    return len(_MIGRATIONS)
