"""The demonstrations that the recipe trains on, by name.

| name | builder | evaluated on |
|---|---|---|
| `nano_facts` | `NanoFacts`: generated facts; the offline default | other questions, same facts |
| `sciknoweval` | `SciKnowEval`: questions of the natural sciences | 200 held-out questions |
| `toolalpaca` | `ToolAlpaca`: calls of documented functions | 20 held-out tools |
"""

from __future__ import annotations

from pathlib import Path

from recipes.sdft.nano_facts import NanoFacts
from recipes.sdft.sciknoweval import SciKnowEval
from recipes.sdft.toolalpaca import ToolAlpaca
from tinker_cookbook.distillation.demonstrations import (
    DemonstrationChats,
    DemonstrationDatasetBuilder,
)
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers.chats import check_file_exists

DATASETS: dict[str, type[DemonstrationDatasetBuilder]] = {
    "nano_facts": NanoFacts,
    "sciknoweval": SciKnowEval,
    "toolalpaca": ToolAlpaca,
}


def demonstrations_of(name: str) -> DemonstrationDatasetBuilder:
    """The data that `dataset=name` stands for: a name in DATASETS, or a path to conversations."""
    if name in DATASETS:
        return DATASETS[name]()
    if not Path(name).suffix and "/" not in name and not Path(name).exists():
        raise ConfigurationError(
            f"dataset={name!r} is unknown; set {', '.join(DATASETS)}, a file, a directory or"
            " org/name of a hub data set"
        )
    return demonstrations_at(name, "dataset")


def demonstrations_at(path: str, key: str) -> DemonstrationChats:
    """The conversations at a path, each ending with its demonstration."""
    check_file_exists(path, key)
    return DemonstrationChats(path=path)
