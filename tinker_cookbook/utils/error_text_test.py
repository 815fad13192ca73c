import pytest

from tinker_cookbook.utils.error_text import first_line, one_line


@pytest.mark.parametrize(
    ("message", "first", "line"),
    [
        ("disk full", "disk full", "disk full"),
        ("\n  disk full  \nhint: delete\nfiles", "disk full", "disk full hint: delete files"),
        ("", "OSError", "OSError"),
        (" \n \n", "OSError", "OSError"),
    ],
)
def test_a_message_is_one_line_and_never_empty(message: str, first: str, line: str) -> None:
    error = OSError(message)
    assert (first_line(error), one_line(error)) == (first, line)


def test_a_long_message_is_cut() -> None:
    assert one_line(ValueError("a  b" * 100), max_length=5) == "a ba "


def test_a_text_without_words() -> None:
    assert first_line("") == one_line("\n") == "no message"
