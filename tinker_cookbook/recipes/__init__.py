"""`tinker_cookbook.recipes.X` is `recipes.X`, the module in the top-level folder, by another name.

One module with two names: as two modules of one file, every class would exist twice, and
`data=Gsm8k` on a command line would be ambiguous.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType


class _AliasLoader(InspectLoader):
    """Loads the module of `real` under another name. `python -m` asks it for the code."""

    def __init__(self, real: ModuleSpec) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return importlib.import_module(self._real.name)

    def exec_module(self, module: ModuleType) -> None:
        # The import system has set the spec of the alias: the module keeps its own.
        module.__spec__ = self._real

    def get_code(self, fullname: str) -> CodeType | None:
        return self._inspect_loader().get_code(self._real.name)

    def get_source(self, fullname: str) -> str | None:
        return self._inspect_loader().get_source(self._real.name)

    def is_package(self, fullname: str) -> bool:
        return self._real.submodule_search_locations is not None

    def _inspect_loader(self) -> InspectLoader:
        assert isinstance(self._real.loader, InspectLoader)
        return self._real.loader


class _AliasFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return None
        real = importlib.util.find_spec(fullname.removeprefix("tinker_cookbook."))
        if real is None:
            return None
        is_package = real.submodule_search_locations is not None
        return ModuleSpec(fullname, _AliasLoader(real), origin=real.origin, is_package=is_package)


sys.meta_path.insert(0, _AliasFinder())
