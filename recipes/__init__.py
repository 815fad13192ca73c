"""What a user runs, copies and edits: `python -m recipes.X key=value ...`."""

import tinker_cookbook as tinker_cookbook  # first: a recipe imports tinker, and tinker torch
