from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor

import langdetect
import pytest

from tinker_cookbook.eval.ifeval import language
from tinker_cookbook.exceptions import ConfigurationError

SHORT = ["Hello world", "what are the boys holding?", "HELLO TO ALL.", "no", "la la la", "Ja, gut."]


def test_languages() -> None:
    assert language.detect("Es regnet heute den ganzen Tag, und ich bleibe zu Hause.") == "de"
    assert language.detect("आज पूरे दिन बारिश हो रही है।") == "hi"
    assert language.detect("123 ... !") is None and language.detect("") is None
    assert {"en", "zh-cn", "sw"} < set(language.languages()) and len(language.languages()) == 55


def test_the_same_answer_in_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for texts on which langdetect itself changes its mind, and as its seed would give."""
    language._created.cache_clear()  # so that the threads race to create it
    texts = SHORT * 40
    random.Random(0).shuffle(texts)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(language.detect, texts))
    assert langdetect.DetectorFactory.seed is None  # other users of langdetect keep their setting
    monkeypatch.setattr(langdetect.DetectorFactory, "seed", 0)
    expected = {text: langdetect.detect(text) for text in SHORT}
    assert found == [expected[text] for text in texts]


def test_without_langdetect(monkeypatch: pytest.MonkeyPatch) -> None:
    language._created.cache_clear()
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(ConfigurationError, match=r"needs langdetect.*pip install .*eval"):
        language.languages()
