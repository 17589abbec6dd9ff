"""Text of objects whose own code fails. No function may raise, because a handler that fails leaves its cell open."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager import limits, texts


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class MuteArgument:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


class NotText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307


class Shout(str):
    """Text whose methods all raise."""

    __slots__ = ()

    def _raise(self, *_: Any) -> Any:
        raise RuntimeError("not today")

    encode = __getitem__ = __len__ = __format__ = __str__ = __repr__ = __add__ = replace = _raise


class Shouted(Exception):
    def __str__(self) -> str:
        return Shout("loud")


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class WithoutName(Exception, metaclass=Nameless):
    pass


class WithoutClass(Exception):
    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class WithoutAttributes(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class Endless(Exception):
    def __str__(self) -> str:
        return f"{self}"


def in_a_circle() -> Exception:
    error = ValueError("round")
    error.__cause__ = error.__context__ = error
    return error


ERRORS = [
    (ValueError("broken"), "ValueError: broken"),
    (ValueError(), "ValueError"),
    (Mute("sniff", 7), "Mute: sniff, 7"),
    (Mute(), "Mute"),
    (Mute(MuteArgument()), "Mute: <MuteArgument without a repr>"),
    (ValueError(MuteArgument()), "ValueError: <MuteArgument without a repr>"),
    (NotText("sniff"), "NotText: sniff"),
    (Shouted("sniff"), "Shouted: loud"),
    (ValueError(Shout("loud")), "ValueError: loud"),
    (Endless("sniff"), "Endless: sniff"),
    (WithoutName("sniff"), "WithoutName: sniff"),
    (WithoutClass("sniff"), "WithoutClass: sniff"),
    (WithoutAttributes("sniff"), "WithoutAttributes: sniff"),
    (ValueError(b"\xff"), "ValueError: b'\\xff'"),
    (ValueError("lone \udc80 \0"), "ValueError: lone ? ?"),
    (
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: bad",
    ),
    (ValueError("x" * 10_000_000), f"ValueError: {'x' * 1_987}…"),
    (ValueError(1 << 20_000), "ValueError: a number of 20001 bits"),
    (in_a_circle(), "ValueError: round"),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))  # pytest cannot print some of the errors
def test_an_error_is_described(number: int) -> None:
    error, text = ERRORS[number]
    assert texts.describe(error) == text
    assert limits.check_message(texts.describe(error)) == text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no groups of exceptions")
def test_a_group_of_errors_is_described() -> None:
    group = ExceptionGroup("all broken", [Mute("a"), ExceptionGroup("inner", [ValueError("b")])])  # noqa: F821
    assert texts.describe(group) == "ExceptionGroup: all broken (2 sub-exceptions)"


def test_a_long_class_name_is_cut() -> None:
    assert len(texts.describe(type("X" * 100_000, (Exception,), {})("why"))) < 100


@given(st.text(st.characters(codec=None)) | st.binary() | st.integers() | st.floats() | st.lists(st.text()))
def test_a_text_is_a_valid_message(value: Any) -> None:
    text = texts.to_text(value)
    assert limits.check_message(text) == text
    assert "\0" not in text
