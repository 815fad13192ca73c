"""nano, the bundled demo model: a Qwen3 architecture with its own measured learning rates."""

from __future__ import annotations

from dataclasses import replace

from tinker_cookbook.families.family import ModelInfo
from tinker_cookbook.families.qwen3 import HYBRID, INSTRUCT, QWEN3

NANO = replace(
    QWEN3,
    name="nano",
    title="nano, bundled",
    model_type="",
    models=(
        ModelInfo(
            name="nano",
            family="nano",
            organization="",
            version_str="1",
            size_str="2M",
            is_chat=True,
            is_moe=False,
            is_vl=False,
            renderers=(*INSTRUCT, *reversed(HYBRID)),
            hidden_size=192,
            context_length=2048,
            lr_exponent=None,  # its learning rates were measured for each method
            gated=False,
        ),
    ),
    tinker_names={},
    exponent=None,
    relatives=(),
    note="",
)
