"""nano: a small real language model that ships with the package, so every recipe runs anywhere.

`PATH` is the directory to give to `transformers`; `tasks` draws its problems, conversations and
preference pairs; `mix` is what it was pre-trained on (scripts/build_nano.py trains it).
"""

from pathlib import Path

PATH = Path(__file__).parent

__all__ = ["PATH"]
