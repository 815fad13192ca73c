"""The message of an exception, as text for one line; never empty, whatever the message is."""

from __future__ import annotations


def one_line(error: BaseException | str, max_length: int | None = None) -> str:
    """The whole message with its whitespace collapsed, at most `max_length` characters of it."""
    return " ".join(str(error).split())[:max_length] or _type_name(error)


def first_line(error: BaseException | str) -> str:
    """The first line of the message that is not blank, for libraries that append hints or a
    traceback to the cause."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), _type_name(error))


def _type_name(error: BaseException | str) -> str:
    return "no message" if isinstance(error, str) else type(error).__name__
