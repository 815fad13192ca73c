"""docs/models.md from what tinker_cookbook/families says.

    .venv/bin/python scripts/build_models_page.py

tests/models_page_test.py fails where the page is not what this writes.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from tinker_cookbook import models
from tinker_cookbook.families import FAMILIES, Family, Feature
from tinker_cookbook.hyperparam_utils import get_lr
from tinker_cookbook.models import ModelInfo

PAGE = Path(__file__).parent.parent / "docs" / "models.md"

INTRODUCTION = """\
# Models

What the cookbook knows by name. This page is written by `scripts/build_models_page.py` from the
files of `tinker_cookbook/families`, one for each family; change it there.

`model_name=` also takes a local directory in Hugging Face format and any other hub name: family,
context length, mixture of experts and learning-rate exponent are then read from `config.json`, the
renderer from the chat template, and what cannot be told must be given as a key. A name that leads
nowhere is refused with the nearest known ones. The engine samples from and trains the families
below, wherever their files come from, and refuses others by name when it loads one.

- **Renderer**: how messages become tokens. The first is what `renderer_name=` is when it is left
  out; with one that is not known to fit, a run says so in one line. `template` follows the
  tokenizer's own chat template, for chat models without a renderer of their own; `role_colon` is a
  plain transcript, for base models. `./scripts/run tinker_cookbook.renderers.show model_name=...`
  shows what a model would see.
- **Names in Tinker's lists** that are not those of the published repositories lead to these, and a
  line says so (`model_name=...: loading ..., the published repository`):
{tinker_names}
  What follows a colon (`Qwen/Qwen3-8B:...`) is left out likewise. In process a run under either
  name is the same run; with `base_url=` the server is asked for the name as given.
- **Known names that are left out**: the official cookbook also has `qwen3_vl`,
  `qwen3_vl_instruct`, `qwen3_5*`, `qwen3_8_*`, `kimi_k25*`, `kimi_k26*`, `deepseekv4_1*`,
  `glm5_3_*`, `nemotron3*` and `tml_v0`. These formats are not here under those names, and a
  renderer with a similar name writes another one. For the text of such a model take
  `renderer_name=template`, which follows the tokenizer's own chat template; it is also what is
  recommended for a local directory of one.
- **Size**: parameters; behind `-A` those active for a token.
- **Context**: tokens that can be read at once: `max_position_embeddings` of the published
  `config.json`; for DeepSeek-V3.1 what its card promises.
- **Learning rate**: for supervised fine-tuning with LoRA, `5e-4 · (2000 / hidden size)^p`. The
  exponents p of Llama and Qwen are the official Tinker cookbook's, fitted there to sweeps and taken
  for every generation, vision models too. Those in brackets are a choice, not measured: of the two
  fitted exponents the one that gives the lower rate. A run that takes such a rate says `(an
  estimate)` behind it when it starts. nano's rate was measured on its own supervised recipe.
- **Gated**: the hub wants its licence accepted, and `HF_TOKEN` set.
"""

FEATURES: dict[Feature, str] = {
    "latent": "multi-head latent attention",
    "sinks": "sinks",
    "sliding_window": "sliding windows",
    "softcap": "capped scores",
}
COLUMNS = (
    "model",
    "size",
    "experts",
    "context",
    "hidden size",
    "renderers, recommended first",
    "p",
    "learning rate",
    "gated",
)


def page() -> str:
    names = "\n".join(f"  - `{name}`: `{meant}`" for name, meant in models.TINKER_NAMES.items())
    sections = [INTRODUCTION.replace("{tinker_names}", names)]
    for family in FAMILIES.values():
        lines = [_line(COLUMNS), "|---" * len(COLUMNS) + "|", *map(_row, family.models)]
        notes = [part for note in (_engine(family), family.note) if note for part in (note, "")]
        sections.append("\n".join([f"## {family.title}", "", *lines, "", *notes]))
    return "\n".join(sections)


def _engine(family: Family) -> str:
    """What the engine does with the family, for the curious and for those who load their own."""
    if not family.model_type:
        return ""
    layers = ", ".join(f"`{name}`" for name in (*family.attention_layers, *family.mlp_layers))
    experts = " (of every expert, too; not on routers)" if family.experts else ""
    facts = [f"`model_type` `{family.model_type}`", f"adapters on {layers}{experts} and `lm_head`"]
    if family.attention:
        facts.append("attention: " + ", ".join(FEATURES[each] for each in family.attention))
    if family.unreadable:
        facts.append(f"the engine cannot read the published files, which have {family.unreadable}")
    text = "In the engine: " + "; ".join(facts) + "."
    return "\n".join(textwrap.wrap(text, 100, break_on_hyphens=False, break_long_words=False))


def _row(row: ModelInfo) -> str:
    return _line(
        (
            f"`{row.name}`",
            row.size_str,
            "yes" if row.is_moe else "",
            f"{row.context_length:,}",
            str(row.hidden_size),
            ", ".join(f"`{name}`" for name in row.renderers),
            _exponent(row),
            f"{get_lr(row.name):.2e}".replace("e-0", "e-"),
            "yes" if row.gated else "",
        )
    )


def _exponent(row: ModelInfo) -> str:
    if row.lr_exponent is None:
        return "measured"
    fitted = models.exponent_is_fitted(row.family)
    return f"{row.lr_exponent}" if fitted else f"({row.lr_exponent})"


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(PAGE.parent.parent)}: {len(models.TABLE)} models")
