"""The family files are consistent. engine/families_test.py compares them with transformers,
renderers/registry_test.py with the renderers."""

from __future__ import annotations

import dataclasses

import pytest

from tinker_cookbook import families
from tinker_cookbook.families import FAMILIES, NANO, SMOLLM2, ChatFormat, find_family

NAMES = list(FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_models_are_of_their_family(name: str) -> None:
    family = FAMILIES[name]
    assert family.name == name and family.models
    for row in family.models:
        assert row.family == name
        assert row.is_moe == family.experts
        assert row.lr_exponent == (family.exponent and family.exponent.value)
        formats = {each.renderers for each in family.chat_formats}
        known = {*formats, families.PLAIN_TRANSCRIPT, families.OWN_TEMPLATE}
        assert row.renderers in known or family is NANO
    for asked, meant in family.tinker_names.items():
        assert meant in [row.name for row in family.models] and asked != meant


def test_a_model_type_is_of_one_family() -> None:
    by_type = [family for family in FAMILIES.values() if family not in (NANO, SMOLLM2)]
    types = [family.model_type for family in by_type]
    assert len(set(types)) == len(types) and all(types)
    for family in by_type:
        assert find_family(family.model_type) is family
    found = [find_family(each) for each in ("", None, "llama3", "mistral", "qwen3_vl")]
    assert found == [None] * 5


@pytest.mark.parametrize(
    ("model_type", "exponent", "fitted"),
    [
        ("llama", 0.781, True),
        ("mllama", 0.781, True),
        ("qwen2_moe", 0.0775, True),
        ("qwen3_vl", 0.0775, True),
        ("gpt_oss", 0.781, False),
    ],
)
def test_exponents_hold_for_relatives(model_type: str, exponent: float, fitted: bool) -> None:
    assert families.lookup_exponent(model_type) == families.Exponent(exponent, fitted)


@pytest.mark.parametrize("name", ["nano", "mistral", "kimi_k25", "gpt2", ""])
def test_families_without_an_exponent(name: str) -> None:
    assert families.lookup_exponent(name) is None


def test_a_format_is_known_by_what_stands_in_its_template() -> None:
    chat = ChatFormat(("x",), has=("<a>", "<b>"), lacks=("<c>",))
    assert chat.fits("<b> <a>")
    assert not chat.fits("<a>") and not chat.fits("<a><b><c>")


def test_families_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NANO.name = "x"  # type: ignore[misc]
