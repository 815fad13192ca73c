import asyncio

import numpy as np
import pytest
import torch

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference.chat_labels import ChatLabels
from tinker_cookbook.renderers import Message, Renderer, get_renderer
from tinker_cookbook.service import connect
from tinker_cookbook.tokenizer_utils import get_tokenizer

QUESTION = [Message(role="user", content="Is 4 even?")]


def nano_renderer(name: str = "qwen3_instruct") -> Renderer:
    return get_renderer(name, get_tokenizer("nano"), model_name="nano")


def test_logprobs_are_those_of_a_softmax_after_the_prompt() -> None:
    """Against the log-softmax over the whole vocabulary by transformers."""
    from transformers import AutoModelForCausalLM

    from tinker_cookbook import models

    labels = ChatLabels(nano_renderer(), ["Yes", "No"])

    async def score() -> np.ndarray:
        client = await connect().create_sampling_client(base_model="nano")
        return await labels.logprobs(client, QUESTION)

    prompt = labels.prompt(QUESTION)
    text = get_tokenizer("nano").decode(prompt)
    assert text.endswith("<|im_start|>assistant\n")
    model = AutoModelForCausalLM.from_pretrained(models.load_path("nano"), dtype=torch.float64)
    logits = model(torch.tensor([prompt])).logits[0, -1]
    expected = logits.log_softmax(-1)[labels.tokens].detach().numpy()
    np.testing.assert_allclose(asyncio.run(score()), expected, atol=2e-5)


def test_a_renderer_whose_replies_begin_alike_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'A', 'B' with '<think>': choose one without"):
        ChatLabels(nano_renderer("qwen3"), ["A", "B"])
