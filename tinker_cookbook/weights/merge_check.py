"""Logprobs of a probe text: the merged model in transformers against base model and adapter.

Both compute in float32 on the CPU, the merged model with its weights as they were written. So in
float32 only the order of operations differs, and in bfloat16 or float16 the one rounding of the
merged weights: a relative error of at most 2^-9 or 2^-12 in each. The bounds are on the mean
absolute difference over the text, in nats per token; a wrong scale, a missing layer or a swapped
projection is nats apart as soon as an adapter has learned something.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError, WeightsMergeError
from tinker_cookbook.service.adapter_tensors import AdapterTensors
from tinker_cookbook.service.probe import free_cpu_memory, probe_logprobs
from tinker_cookbook.utils.error_text import first_line
from tinker_cookbook.utils.model_directory import transformers_config
from tinker_cookbook.weights.output_directory import file_size
from tinker_cookbook.weights.tensor_files import TensorFiles

# nats per token. float32: about 1e-5 was measured on small models; large ones sum longer rows.
# bfloat16: 0.01 to 0.03 was measured on small models. float16 rounds eight times more finely.
BOUNDS = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
ROOM = 1.5  # memory to compute in, in copies of the float32 weights
PROBE_TEXT = (
    "The lighthouse keeper counted 17 ships before noon; by evening, 25 more had passed.\n"
    "def area(width, height):\n    return width * height  # in square metres\n"
    "Question: What is 12 + 30? Answer: 42. Merci beaucoup, et à bientôt!"
)
_PROBE_TOKENS = 64  # of a model without a tokenizer


class MergeCheck(NamedTuple):
    """Differences over the tokens of the probe text, in nats.

    mean, worst: of the merged model from base and adapter. effect: mean difference that the adapter
    makes, i.e. of the base model alone from base and adapter.
    """

    mean: float
    worst: float
    effect: float
    tokens: int

    def describe(self) -> str:
        return (
            f"logprobs of {self.tokens} tokens differ from base and adapter by {self.mean:.1e} nats"
            f" on average, {self.worst:.1e} at most; the adapter changes them by {self.effect:.1e}"
        )


def check_merged(
    adapter: AdapterTensors, directory: Path, dtype: str, log_line: Callable[[str], None]
) -> MergeCheck | None:
    """Compare the merged model in a directory with the adapter beside its base model.

    None, and a line that says so, if float32 weights do not fit in memory. WeightsMergeError if the
    difference exceeds the bound of dtype.
    """
    infos = TensorFiles(directory).tensors.values()
    needed = int(ROOM * 4 * sum(math.prod(info.shape) for info in infos))
    free = free_cpu_memory()
    if needed > free:
        log_line(
            f"check not made: comparing logprobs takes {file_size(needed)} of memory,"
            f" {file_size(free)} are free"
        )
        return None
    log_line("checking logprobs of the merged model against base and adapter")
    tokens = _probe_tokens(adapter)
    expected = probe_logprobs(adapter, tokens)
    gc.collect()  # the engine's model, before the next one is loaded
    found = _transformers_logprobs(directory, tokens)
    gaps = np.abs(found - expected.trained)
    effect = float(np.abs(expected.base - expected.trained).mean())
    check = MergeCheck(float(gaps.mean()), float(gaps.max()), effect, len(tokens))
    bound = BOUNDS[dtype]
    if not check.mean <= bound:  # not above, or not a number
        raise WeightsMergeError(
            f"the merged model is wrong: its {check.describe()} (bound for {dtype}: {bound:g} on"
            " average); nothing was exported; use format=peft, or check=False to write it anyway"
        )
    if check.mean > effect / 2:
        log_line(
            f"note: rounding to {dtype} changes logprobs by {check.mean:.1e}, training by"
            f" {effect:.1e} nats per token: use dtype=float32 or format=peft to keep it"
        )
    return check


def _probe_tokens(adapter: AdapterTensors) -> Sequence[int]:
    from tinker_cookbook.tokenizer_utils import get_tokenizer

    try:
        return get_tokenizer(adapter.base_model).encode(PROBE_TEXT)
    except ConfigurationError:  # a model without a tokenizer
        vocabulary = transformers_config(models.load_path(adapter.base_model)).vocab_size
        return np.random.default_rng(0).integers(0, vocabulary, _PROBE_TOKENS).tolist()


@torch.no_grad()
def _transformers_logprobs(directory: Path, tokens: Sequence[int]) -> np.ndarray:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its warnings about missing weights are the error below
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=transformers_config(str(directory)),
            dtype=torch.float32,
            experts_implementation="eager",
            output_loading_info=True,
        )
    except Exception as error:  # what is raised depends on the model
        raise WeightsMergeError(
            f"transformers cannot load the merged model: {first_line(error)}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise WeightsMergeError(f"transformers finds no {missing[0]!r} in the merged model")
    ids = torch.tensor([list(tokens)])
    logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(1, ids[0, 1:, None])[:, 0].numpy()
