"""A task for small real models: answer questions about a shop that only the prompt describes."""

from __future__ import annotations

import re
from pathlib import Path

from recipes.prompt_distillation.task import Task, read_task

_FOLDER = Path(__file__).parent
PROMPT = (
    "You answer the questions of customers of the bakery Crumb Lane, in one short and friendly"
    " sentence. Use only these facts.\n"
    "- The bakery opens at 6:30 in the morning and closes at 5 pm.\n"
    "- It is closed on Tuesday, and open on all other days.\n"
    "- The owner is Marta Lind, who founded the bakery in 1987.\n"
    "- The address is 14 Harbor Street, next to the old lighthouse.\n"
    "- The phone number is 555-0182.\n"
    "- The bakery is known for its rye bread with walnut. A loaf of rye bread costs 4.20 dollars.\n"
    "- Customers can pay in cash only. Cards are not accepted.\n"
    "- A cake must be ordered two days before it is needed.\n"
    "- The cat in the window is called Pepper.\n"
    "If you are asked for anything else, say that you will ask Marta."
)


def bakery() -> Task:
    """48 questions about 12 facts, and 24 others about them that are held out."""
    return read_task(PROMPT, _FOLDER, "bakery", is_right, num_samples=4)


def is_right(reply: str, expected: str) -> bool:
    """Whether the fact is in the reply, as whole words; the last one may be in the plural."""
    return re.search(rf"\b{re.escape(expected)}s?\b", reply, re.IGNORECASE) is not None
