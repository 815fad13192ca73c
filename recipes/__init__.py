"""What a user runs, copies and edits: `python -m recipes.X key=value ...`."""
