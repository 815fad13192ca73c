"""`weights/` in a run directory: links to the run's checkpoints in the store."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = "weights"


def remove_links(directory: Path, *, only_dead: bool = False) -> None:
    """Remove the links; only_dead: only those whose checkpoint is gone while its store exists."""
    folder = directory / WEIGHTS
    if not folder.is_dir():
        return
    for entry in list(folder.iterdir()):
        if not entry.is_symlink():
            continue
        parents = (folder / entry.readlink()).parents  # <runs>/<run>/<kind>/<name>
        ours = len(parents) > 2 and parents[0].name in ("weights", "sampler_weights")
        if ours and (not only_dead or (not entry.exists() and parents[2].is_dir())):
            entry.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
