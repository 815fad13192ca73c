"""The language of a text, by langdetect: deterministic, and safe to call from several threads."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.misc_utils import install_line

if TYPE_CHECKING:
    from langdetect import DetectorFactory

SEED = 0
_creating = threading.Lock()


def detect(text: str) -> str | None:
    """The code of the language, such as "en" or "zh-cn"; None if the text has no features.

    langdetect samples n-grams, so an unseeded call may answer differently for the same short text.
    Here each call has a generator of its own with the same seed, and the process-wide settings of
    langdetect stay as they are.
    """
    from langdetect import LangDetectException

    detector = _factory().create()
    detector.append(text)
    try:
        return detector.detect()
    except LangDetectException:
        return None


def languages() -> list[str]:
    """The codes that `detect` can return. Raises ConfigurationError without langdetect."""
    return sorted(_factory().get_lang_list())


def _factory() -> DetectorFactory:
    with _creating:
        return _created()


@functools.cache
def _created() -> DetectorFactory:
    """Loads the profiles, about half a second; sorted, since `load_profile` takes them in the
    order of the file system, and float sums depend on the order."""
    try:
        from langdetect import DetectorFactory
        from langdetect.detector_factory import PROFILES_DIRECTORY
    except ImportError as error:
        raise ConfigurationError(
            "IFEval needs langdetect to tell languages; install it with " + install_line("eval")
        ) from error
    factory = DetectorFactory()
    files = sorted(path for path in Path(PROFILES_DIRECTORY).iterdir() if path.is_file())
    factory.load_json_profile([path.read_text(encoding="utf-8") for path in files])
    factory.set_seed(SEED)
    return factory
