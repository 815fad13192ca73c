"""Export a checkpoint: a PEFT adapter, or a merged Hugging Face model.

    python -m tinker_cookbook.weights.export checkpoint=RUN output=DIR
    python -m tinker_cookbook.weights.export checkpoint=RUN output=DIR format=merged

peft, the default: an adapter that peft and vLLM load beside the base model. merged: a complete
model for transformers, vLLM and others: every weight of the base model plus the adapter's product,
computed in float32, one tensor at a time, so that the memory of one shard is enough. Then logprobs
of the merged model are compared with those of base model and adapter, where the model fits in
memory. Both come with tokenizer, chat template and a model card (README.md), ready for
tinker_cookbook.weights.publish. The directory appears only when everything in it is complete.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import chz

from tinker_cookbook.cli_utils import cli
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils import stop_signals
from tinker_cookbook.utils.display import is_terminal
from tinker_cookbook.weights.checkpoint_path import checkpoint_path, server_of_run
from tinker_cookbook.weights.output_directory import check_free, file_size

if TYPE_CHECKING:
    from tinker_cookbook.service.adapter_tensors import AdapterTensors
    from tinker_cookbook.weights.hf_model import MergedModel

_UNTIED = (
    "the base model uses one matrix as embedding and unembedding, but the adapter has an update for"
    " the unembedding alone: the export has both (lm_head.weight, tie_word_embeddings=false)"
)


@chz.chz
class Config:
    checkpoint: str = chz.field(
        doc="what to export: a tinker:// path, a run directory (its last checkpoint), one of its"
        " weights/NAME, or a PEFT adapter directory"
    )
    output: str = chz.field(doc="new directory for the export")
    format: Literal["peft", "merged"] = chz.field(
        default="peft", doc="peft: an adapter; merged: a complete model"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = chz.field(
        default="auto",
        doc="dtype of the weights (auto: float32 for an adapter, the base model's for a merged"
        " model)",
    )
    base_model: str | None = chz.field(
        default=None, doc="hub name or path of the base model (None: the checkpoint's)"
    )
    check: bool = chz.field(
        default=True, doc="compare logprobs of a merged model with those of base and adapter"
    )
    base_url: str | None = chz.field(
        default=None,
        doc="Tinker API server URL that has the checkpoint (None: the run's, or this machine)",
    )


def main(config: Config) -> None:
    try:
        export(config)
    except BaseException:
        signals = stop_signals.active()
        if signals.requested is None:
            raise
        # whatever an interrupted library made of it
        raise signals.stopped(f"stopped; nothing was left at output={config.output}") from None


def export(config: Config) -> None:
    check_free(Path(config.output), "output")
    base_url = config.base_url or server_of_run(config.checkpoint)
    path = checkpoint_path(config.checkpoint, "checkpoint", base_url)
    if base_url is None:
        _export(config, path)
        return
    from tinker_cookbook.weights.checkpoint_files import download

    with tempfile.TemporaryDirectory() as temporary:
        print(f"downloading {path}")
        fetched = download(
            tinker_path=path, output_dir=f"{temporary}/checkpoint", base_url=base_url
        )
        _export(config, fetched)


def _export(config: Config, path: str) -> None:
    # late: they import torch, which --help and a wrong key need not wait for
    from tinker_cookbook.service.adapter_tensors import open_adapter
    from tinker_cookbook.weights.hf_model import write_merged
    from tinker_cookbook.weights.lora_adapter import write_adapter
    from tinker_cookbook.weights.peft_limits import peft_limit

    output = Path(config.output)
    with open_adapter(path, config.base_model) as adapter:
        print(f"exporting {path}, rank {adapter.spec.rank}, base model {adapter.base_model}")
        notes = _notes(adapter)
        if config.format == "peft":
            notes += [limit] if (limit := peft_limit(adapter)) else []
            written = write_adapter(
                adapter,
                output,
                config.dtype,
                "output",
                print,
                lambda directory, _: _write_card(config, adapter, directory, None, notes),
            )
            size, dtype, loaders = written.nbytes, None, "peft and vLLM"
        else:

            def finish(directory: Path, model: MergedModel) -> None:
                notes.extend([_UNTIED] if model.untied else [])
                _write_card(config, adapter, directory, model.dtype, notes)

            merged = write_merged(
                adapter, output, config.dtype, config.check, "output", print, _progress, finish
            )
            if merged.check is not None:
                print(f"checked: {merged.check.describe()}")
            notes += _renderer_note(adapter, merged.directory)
            size, dtype, loaders = merged.nbytes, merged.dtype, "transformers and vLLM"
    for note in notes:
        print(f"note: {note}")
    kind = "adapter" if config.format == "peft" else f"merged model in {dtype}"
    print(f"{output}: {kind} for {loaders}, {file_size(size)}")


def _notes(adapter: AdapterTensors) -> list[str]:
    """What a user of the export should know."""
    from tinker_cookbook import models

    trained = _trained_renderer(adapter)
    try:
        fitting = models.lookup(adapter.base_model).renderers
    except ConfigurationError:
        return []
    if trained is None or trained in fitting:
        return []
    return [
        f"it was trained with renderer_name={trained}, but the chat template in the export is the"
        f" base model's ({fitting[0] if fitting else 'none'}): prompts must be rendered as in"
        " training"
    ]


def _renderer_note(adapter: AdapterTensors, output: Path) -> list[str]:
    """The renderer to set for a merged model, where that of its files is not the trained one."""
    from tinker_cookbook import models

    trained = _trained_renderer(adapter)
    try:
        own = models.recommended_renderer(str(output))
    except ConfigurationError:  # without a tokenizer
        return []
    if trained in (None, own):
        return []
    return [f"in recipes, model_name={output} goes with renderer_name={trained}, as it was trained"]


def _trained_renderer(adapter: AdapterTensors) -> str | None:
    from tinker_cookbook.checkpoint_utils import RENDERER_NAME_KEY

    return (adapter.origin.user_metadata or {}).get(RENDERER_NAME_KEY)


def _write_card(
    config: Config, adapter: AdapterTensors, directory: Path, dtype: str | None, notes: list[str]
) -> None:
    from tinker_cookbook.weights.model_card import (
        CARD_FILE,
        generate_model_card,
        training_facts,
    )

    run = Path(config.checkpoint).expanduser()
    if not (run / "config.json").is_file() or not (run / "metrics.jsonl").is_file():
        run = adapter.origin.run_directory
    card = generate_model_card(
        title=Path(config.output).name,
        base_model=adapter.base_model,
        format=config.format,
        facts=training_facts(run),
        dtype=dtype,
        rank=adapter.spec.rank,
        notes=notes,
    )
    (directory / CARD_FILE).write_text(card, encoding="utf-8")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar of the bytes written, on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    console = Console(file=sys.stdout, highlight=False)
    columns = ("merging", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    disabled = not is_terminal(sys.stdout)
    with Progress(*columns, console=console, disable=disabled) as progress:
        task = progress.add_task("merging", total=total)
        yield lambda count: progress.advance(task, count)


if __name__ == "__main__":
    cli(main, Config)
