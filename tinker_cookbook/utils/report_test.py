import base64
import hashlib
import json
import math

import pytest

from tinker_cookbook.utils.report import (
    Html,
    data_element,
    element,
    escape,
    fold,
    metrics_table,
    page,
    table,
)
from tinker_cookbook.utils.testing import HOSTILE, Elements, shown


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text_wherever_it_stands(text: str) -> None:
    parts = [
        element("p", text, title=text),
        fold(text, text),
        table([[text, 1.0]], header=[text]),
        metrics_table({text: text}),
    ]
    found = Elements(page(text, parts, script="1", data={text: [text]}))
    ours = "html head meta meta meta title style body p details summary"
    tables = "table tr th tr td td div table tr td td"
    assert found.tags() == f"{ours} {tables} script script".split()
    assert found.texts["p"] == [shown(text)]
    assert found.attributes("p") == [{"title": shown(text)}]
    assert found.texts["td"] == [shown(text), "1", shown(text), shown(text)]
    assert json.loads(found.texts["script"][0]) == {text: [text]}


def test_a_page_has_bytes_whatever_was_written_into_it() -> None:
    text = page("".join(HOSTILE), HOSTILE, script="1", data=HOSTILE)
    assert text.encode().decode() == text


def test_data_with_nan_is_json() -> None:
    found = Elements(data_element({"a": [math.nan, -math.inf, 0.1]}))
    assert json.loads(found.texts["script"][0]) == {"a": ["NaN", "-Infinity", 0.1]}


def test_the_policy_lets_only_this_script_run_and_nothing_be_fetched() -> None:
    script = "const e = 'é';\n"
    found = Elements(page("t", [], script=script, data=None))
    assert found.texts["script"] == ["null", script]
    (policy,) = [
        each["content"]
        for each in found.attributes("meta")
        if each.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
    }


def test_the_style_reaches_for_nothing_and_knows_light_and_dark() -> None:
    style = "".join(Elements(page("t", [], style=".mine{}")).texts["style"])
    assert "url(" not in style and "@import" not in style
    assert "prefers-color-scheme: dark" in style and style.endswith(".mine{}")


def test_elements() -> None:
    assert element("p", "a", None, [1, [Html("<b>x</b>")]]) == "<p>a1<b>x</b></p>"
    assert element("input", type="radio", checked=True, disabled=False, value=None) == (
        '<input type="radio" checked>'
    )
    assert element("div", class_="a", data_group="3") == '<div class="a" data-group="3"></div>'
    assert escape(escape("<")) == "&lt;"


def test_numbers_in_tables_are_short_and_keep_their_digits_as_a_title() -> None:
    assert '<td class="number" title="0.123456789">0.1235</td>' in table([[0.123456789]])
    assert '<td class="number" title="nan">nan</td>' in table([[math.nan]])
    assert "<td>True</td>" in table([[True]])
