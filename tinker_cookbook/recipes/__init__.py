"""`python -m tinker_cookbook.recipes.X` runs `recipes.X`, the module in the top-level folder."""

import importlib.util
from pathlib import Path

_spec = importlib.util.find_spec("recipes")
if _spec is not None and _spec.origin is not None:
    __path__.append(str(Path(_spec.origin).parent))
