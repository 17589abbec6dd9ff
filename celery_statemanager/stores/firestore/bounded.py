"""What a process remembers, without growing for ever. Safe between threads: single operations on a dict."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def remember(memory: dict[K, V], key: K, value: V, most: int) -> None:
    """Keep a value; when there are too many, forget the tenth that came first."""
    if len(memory) >= most:
        for old in list(memory)[: most // 10 + 1]:
            memory.pop(old, None)
    memory[key] = value
