"""nano: a small real language model that ships with the package, so every recipe runs anywhere.

`PATH` is the model directory for `transformers`. `tasks` generates problems, conversations and
preference pairs; `mix` generates the pre-training data (scripts/build_nano.py trains the model).
"""

from pathlib import Path

PATH = Path(__file__).parent

__all__ = ["PATH"]
