"""The model card of an export: what it was made from, how it was trained, how to load it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from tinker_cookbook import models
from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.utils.display import HEADLINES, evaluations, short
from tinker_cookbook.utils.ml_log import read_metrics

CARD_FILE = "README.md"
Format = Literal["peft", "merged"]

# keys of config.json in the card; the others are settings of the machine, or follow from these
_KEYS = (
    *("renderer_name", "learning_rate", "lr_schedule", "batch_size", "max_length", "num_epochs"),
    *("max_steps", "groups_per_batch", "group_size", "max_tokens", "temperature", "dpo_beta"),
    *("loss_fn", "kl_penalty_coef", "load_checkpoint_path", "seed"),
    *("lora_rank", "train_attn", "train_mlp", "train_unembed"),
)
_DATA_KEYS = ("dataset_builder", "dataset", "data", "dataset_path", "comparisons")
_RESULTS = ("exact_match", "accuracy", "correct", "pass@1")  # last parts of metrics that are shown
_CITED = "open-tinker-cookbook"


@dataclass(frozen=True)
class TrainingFacts:
    """A training run, as its directory tells. Empty: not known."""

    recipe: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def training_facts(run_directory: Path | None) -> TrainingFacts:
    """Read config.json and metrics.jsonl of a run; nothing if they are absent or damaged."""
    if run_directory is None:
        return TrainingFacts()
    try:
        config = json.loads((run_directory / "config.json").read_text(encoding="utf-8"))
        rows = read_metrics(run_directory)
    except (OSError, ValueError, DataFormatError):
        return TrainingFacts()
    if not isinstance(config, dict):
        return TrainingFacts()
    settings = {key: _text(config[key]) for key in _KEYS if config.get(key) is not None}
    data: dict[str, str] = {}
    for key in _DATA_KEYS:
        _add_data(key, config.get(key), data)
    return TrainingFacts(str(config.get("recipe") or ""), settings, data, _results(rows))


def generate_model_card(
    *,
    title: str,
    base_model: str,
    format: Format,
    facts: TrainingFacts | None = None,
    dtype: str | None = None,
    rank: int | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The text of README.md: metadata for the hub, the origin, training, results and how to load.

    title: also the name of the repository in the commands.
    """
    facts = facts or TrainingFacts()
    on_hub = "/" in base_model and not models.is_local_path(base_model)
    what = "LoRA adapter" if format == "peft" else "model with a merged LoRA adapter"
    metadata: dict[str, Any] = {
        "library_name": "peft" if format == "peft" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [tag for tag in ("lora", _CITED, facts.recipe) if tag],
    }
    if on_hub:
        relation = "adapter" if format == "peft" else "finetune"
        metadata |= {"base_model": base_model, "base_model_relation": relation}
    lines = ["---", yaml.safe_dump(metadata, sort_keys=False).strip(), "---", "", f"# {title}", ""]
    origin = f"`{base_model}`" if on_hub else f"{_base_name(base_model)}, which is not on the hub"
    by = f" by the recipe `{facts.recipe}`" if facts.recipe else ""
    lines += [f"A {what} of {origin}, trained{by} with {_CITED}."]
    size = [f"rank {rank}"] if rank is not None else []
    if size or dtype:
        lines += ["", ", ".join([*size, *([f"weights in {dtype}"] if dtype else [])]) + "."]
    lines += [text for note in notes for text in ("", f"Note: {note}")]
    for heading, table in (
        ("Data", facts.data),
        ("Training", facts.settings),
        ("Results at the end of training", {k: short(v) for k, v in facts.metrics.items()}),
    ):
        if table:
            lines += ["", f"## {heading}", "", "| key | value |", "|---|---|"]
            lines += [f"| {key} | {_cell(value)} |" for key, value in table.items()]
    lines += ["", "## Use", "", *_usage(title, base_model, format, rank)]
    return "\n".join(lines) + "\n"


def _usage(title: str, base_model: str, format: Format, rank: int | None) -> list[str]:
    if format == "merged":
        return [
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{title}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{title}")',
            "```",
            "",
            f"vLLM: `vllm serve {title}`",
        ]
    base = base_model if "/" in base_model else "PATH_OF_THE_BASE_MODEL"
    return [
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{base}")',
        f'model = PeftModel.from_pretrained(base, "{title}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{title}")',
        "```",
        "",
        f"vLLM: `vllm serve {base} --enable-lora --max-lora-rank {rank or 64}"
        f" --lora-modules adapter={title}`",
    ]


def _base_name(base_model: str) -> str:
    return f"`{Path(base_model).name if models.is_local_path(base_model) else base_model}`"


def _results(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last value of every headline metric and result of an evaluation."""
    found: dict[str, float] = {}
    for row in rows:
        shown = {k: v for k, v in row.items() if k in HEADLINES or k.rpartition("/")[2] in _RESULTS}
        for key, value in {**shown, **evaluations(row)}.items():
            if isinstance(value, int | float) and math.isfinite(value):
                found[key] = value
    return found


def _add_data(key: str, value: Any, data: dict[str, str]) -> None:
    """Flatten the settings of a data set; a mixture is a list of them."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name not in ("identity", "common_config", "renderer_name", "model_name"):
                _add_data(f"{key}.{name}", part, data)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            _add_data(f"{key}.{index}", part, data)
    elif value is not None:
        data[key] = _text(value)


def _text(value: Any) -> str:
    """A value without directories of the machine that trained."""
    text = str(value)
    return Path(text).name if text.startswith(("/", "~", "./", "../")) else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
