"""What to do with a student."""

from __future__ import annotations

from pathlib import Path


def describe_student(directory: Path) -> str:
    """The last line of a run."""
    return (
        f"the student is {directory}: load_checkpoint_path= of any recipe trains it further,"
        " model_path= of a judge or an evaluation samples from it, teacher_checkpoint= makes it a"
        " teacher"
    )
