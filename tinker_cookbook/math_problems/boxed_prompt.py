r"""How answers in `\boxed{}` are asked for, in training and in evaluation."""

from __future__ import annotations

from tinker_cookbook.renderers import Message

REQUEST = " Put the answer in \\boxed{}."
"""Appended to every question. nano saw exactly this wording in pre-training."""

ONE_SHOT = [
    Message(role="user", content="A box holds 24 pens and a third of them are red. How many pens"
    " are not red?" + REQUEST),
    Message(role="assistant", content="A third of 24 is 24 / 3 = 8, so 24 - 8 = 16 pens are not"
    " red. \\boxed{16}"),
]  # fmt: skip
"""Shows the expected format to models that do not follow instructions well."""
