"""Claims and change logs in the SQLite file of a cache."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence

from ragopt.codecs import STAMP_SIZE
from ragopt.protocols import ChangeLog
from ragopt.stores.coordinating import KEPT_CHANGES, new_claim

TABLES = (
    "CREATE TABLE IF NOT EXISTS change_log "
    "(space BLOB PRIMARY KEY, id BLOB NOT NULL, seq INTEGER NOT NULL, low INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS change "
    "(space BLOB, tag BLOB, seq INTEGER NOT NULL, PRIMARY KEY (space, tag)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS change_order ON change (space, seq)",
)

_PRUNE_EVERY = 1000  # changes between two looks at the length of a log
_HOLDS = f"key = ? AND substr(value, 1, {STAMP_SIZE}) = ?"


def claim(
    connection: sqlite3.Connection, key: bytes, now: float, seconds: float, over: bytes | None
) -> bytes | None:
    """Put a claim where there is nothing, or nothing else than ``over``; in a transaction."""
    found = connection.execute(
        f"SELECT substr(value, 1, {STAMP_SIZE}), expires_at FROM entry WHERE key = ?", (key,)
    ).fetchone()
    if found is not None:
        stamp, expires_at = found
        if stamp != over and (expires_at is None or expires_at > now):
            return None
    token = new_claim()
    connection.execute("REPLACE INTO entry VALUES (?, ?, ?)", (key, token, now + seconds))
    return token


def extend(connection: sqlite3.Connection, key: bytes, token: bytes, until: float) -> bool:
    """Move the end of a claim that is still there."""
    changed = connection.execute(
        f"UPDATE entry SET expires_at = ? WHERE {_HOLDS}", (until, key, token)
    )
    return changed.rowcount == 1


def commit(
    connection: sqlite3.Connection, key: bytes, token: bytes, blob: bytes, expires_at: float | None
) -> bool:
    """Put a value where this claim, or the entry with this stamp, still is."""
    changed = connection.execute(
        f"UPDATE entry SET value = ?, expires_at = ? WHERE {_HOLDS}",
        (blob, expires_at, key, token),
    )
    return changed.rowcount == 1


def release(connection: sqlite3.Connection, key: bytes, token: bytes) -> bool:
    """Remove this claim, or the entry with this stamp."""
    return connection.execute(f"DELETE FROM entry WHERE {_HOLDS}", (key, token)).rowcount == 1


def mark(connection: sqlite3.Connection, space: bytes, tags: Sequence[bytes]) -> ChangeLog:
    """Write down one change; in a transaction."""
    state = log(connection, space)
    seq, low = state.seq + 1, state.low
    connection.executemany(
        "REPLACE INTO change VALUES (?, ?, ?)", [(space, tag, seq) for tag in tags]
    )
    if seq % _PRUNE_EVERY == 0:
        (low,) = connection.execute(
            "SELECT coalesce(max(seq), ?) FROM (SELECT seq FROM change WHERE space = ? "
            "ORDER BY seq DESC LIMIT -1 OFFSET ?)",
            (low, space, KEPT_CHANGES),
        ).fetchone()
        connection.execute("DELETE FROM change WHERE space = ? AND seq <= ?", (space, low))
    connection.execute("UPDATE change_log SET seq = ?, low = ? WHERE space = ?", (seq, low, space))
    return ChangeLog(state.id, seq, low)


def log(connection: sqlite3.Connection, space: bytes) -> ChangeLog:
    """Return the state of a log, which begins here if there is none."""
    select = "SELECT id, seq, low FROM change_log WHERE space = ?"
    found = connection.execute(select, (space,)).fetchone()
    if found is None:
        # Another process may be as fast: the first one's id stands.
        connection.execute(
            "INSERT OR IGNORE INTO change_log VALUES (?, ?, 0, 0)", (space, secrets.token_bytes(8))
        )
        found = connection.execute(select, (space,)).fetchone()
    return ChangeLog(*found)


def last_changes(
    connection: sqlite3.Connection, space: bytes, tags: Sequence[bytes]
) -> tuple[ChangeLog, list[int]]:
    """Return the state, then the tags: so what is said of a tag is never older than the state."""
    state = log(connection, space)
    if not tags:
        return state, []
    marks = ",".join("?" * len(tags))
    seqs = dict(
        connection.execute(
            f"SELECT tag, seq FROM change WHERE space = ? AND tag IN ({marks})", (space, *tags)
        )
    )
    return state, [seqs.get(tag, 0) for tag in tags]


def changes_since(
    connection: sqlite3.Connection, space: bytes, seq: int
) -> tuple[ChangeLog, list[bytes]]:
    """Return the state and what changed after ``seq``."""
    state = log(connection, space)
    if state.seq == seq:
        return state, []
    rows = connection.execute(
        "SELECT tag FROM change WHERE space = ? AND seq > ? ORDER BY seq", (space, seq)
    )
    return state, [tag for (tag,) in rows]
