"""Deleted jobs: gone at once, their rows removed bit by bit."""

# ruff: noqa: S608 - what is put together are our own column names; every value is bound

from __future__ import annotations

import sqlite3

_TABLES = (("cell", "tag, task_index"), ("gap", "tag, high"), ("tag", "id"))


def discard(db: sqlite3.Connection, number: int) -> None:
    """Take a job off the books; its number is never used again, so nobody finds its rows."""
    db.execute("DELETE FROM job WHERE id = ?", (number,))
    db.execute("INSERT INTO garbage (job) VALUES (?)", (number,))


def purge(db: sqlite3.Connection, limit: int) -> int:
    """Remove up to about ``limit`` rows of discarded jobs; give their number."""
    removed = 0
    while removed < limit:
        oldest = db.execute("SELECT min(job) FROM garbage").fetchone()[0]
        if oldest is None:
            break
        removed += _purge_job(db, oldest, limit - removed)
    return removed


def _purge_job(db: sqlite3.Connection, number: int, limit: int) -> int:
    removed = 0
    for table, key in _TABLES:
        rows = f"SELECT job, {key} FROM {table} WHERE job = ? LIMIT ?"
        removed += db.execute(f"DELETE FROM {table} WHERE (job, {key}) IN ({rows})", (number, limit - removed)).rowcount
        if removed >= limit:
            return removed
    db.execute("DELETE FROM garbage WHERE job = ?", (number,))
    return removed + 1
