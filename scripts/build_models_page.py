"""Write docs/models.md from the files of tinker_cookbook/families.

    .venv/bin/python scripts/build_models_page.py

tests/models_page_test.py fails if the page is out of date.
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

The models that the cookbook knows by name. `scripts/build_models_page.py` writes this page from the
files of `tinker_cookbook/families`, one per family; make changes there.

`model_name=` also takes a local directory in Hugging Face format and any other hub name. Family,
context length, mixture of experts and learning-rate exponent are then read from `config.json`, and
the renderer from the chat template; a key that cannot be inferred must be given. An unknown name is
an error that lists the nearest known names. The engine trains and samples the families below,
whatever the source of their files, and raises an error when it loads any other.

- **Renderer**: converts messages to tokens. The first one is the default of `renderer_name=`; a run
  logs a warning if the chosen one is not known to fit. `template` follows the tokenizer's chat
  template, for chat models without a renderer of their own; `role_colon` is a plain transcript, for
  base models. `./scripts/run tinker_cookbook.renderers.show model_name=...` shows the tokens that a
  model would see.
- **Names in Tinker's lists** that differ from the published repository are replaced by it, and a
  line in the log says so (`model_name=...: loading ..., the published repository`):
{tinker_names}
  A suffix after a colon (`Qwen/Qwen3-8B:...`) is dropped likewise. In process, a run under either
  name is the same run; with `base_url=` the server receives the name as given.
- **Known names that are left out**: the official cookbook also has `qwen3_vl`,
  `qwen3_vl_instruct`, `qwen3_5*`, `qwen3_8_*`, `kimi_k25*`, `kimi_k26*`, `deepseekv4_1*`,
  `glm5_3_*`, `nemotron3*` and `tml_v0`. These renderers are not implemented, and a renderer with a
  similar name writes another format. For text with such a model use `renderer_name=template`, which
  follows the tokenizer's chat template; it is also the recommendation for a local directory of one.
- **Size**: parameters; after `-A`, the parameters that are active for a token.
- **Context**: maximum context length in tokens: `max_position_embeddings` of the published
  `config.json`; for DeepSeek-V3.1 the length in its model card.
- **Learning rate**: for supervised fine-tuning with LoRA, `5e-4 · (2000 / hidden size)^p`. The
  exponents p of Llama and Qwen are those of the official Tinker cookbook, which fitted them to
  sweeps and uses them for every generation and for vision models. Exponents in brackets are not
  measured: they are the one of the two fitted exponents that gives the lower rate, and a run that
  uses one prints `(an estimate)` after the rate. nano's rate was measured on its supervised recipe.
- **Gated**: downloading requires accepting a licence on the hub and setting `HF_TOKEN`.
"""

FEATURES: dict[Feature, str] = {
    "latent": "multi-head latent attention",
    "sinks": "sinks",
    "sliding_window": "sliding windows",
    "softcap": "soft-capped scores",
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
        lines = [
            _markdown_row(COLUMNS),
            "|---" * len(COLUMNS) + "|",
            *map(_table_row, family.models),
        ]
        notes = [
            part for note in (_engine_support(family), family.note) if note for part in (note, "")
        ]
        sections.append("\n".join([f"## {family.title}", "", *lines, "", *notes]))
    return "\n".join(sections)


def _engine_support(family: Family) -> str:
    """One sentence on the engine's support: model_type, adapter layers, attention features."""
    if not family.model_type:
        return ""
    layers = ", ".join(f"`{name}`" for name in (*family.attention_layers, *family.mlp_layers))
    experts = " (of every expert; not on routers)" if family.experts else ""
    facts = [f"`model_type` `{family.model_type}`", f"adapters on {layers}{experts} and `lm_head`"]
    if family.attention:
        facts.append("attention: " + ", ".join(FEATURES[name] for name in family.attention))
    if family.unreadable:
        facts.append(f"the engine cannot read the published files, which have {family.unreadable}")
    text = "In the engine: " + "; ".join(facts) + "."
    return "\n".join(textwrap.wrap(text, 100, break_on_hyphens=False, break_long_words=False))


def _table_row(row: ModelInfo) -> str:
    return _markdown_row(
        (
            f"`{row.name}`",
            row.size_str,
            "yes" if row.is_moe else "",
            f"{row.context_length:,}",
            str(row.hidden_size),
            ", ".join(f"`{name}`" for name in row.renderers),
            _format_exponent(row),
            f"{get_lr(row.name):.2e}".replace("e-0", "e-"),
            "yes" if row.gated else "",
        )
    )


def _format_exponent(row: ModelInfo) -> str:
    if row.lr_exponent is None:
        return "measured"
    fitted = models.exponent_is_fitted(row.family)
    return f"{row.lr_exponent}" if fitted else f"({row.lr_exponent})"


def _markdown_row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(PAGE.parent.parent)}: {len(models.TABLE)} models")
