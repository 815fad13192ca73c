"""Our models as Inspect models: seeds, concurrency, tools, logprobs, stop sequences, refusals."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import tinker
from inspect_ai import Task, eval_async
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Model,
    get_model,
)
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, ToolFunction, ToolInfo, tool
from inspect_ai.util._display import init_display_type

from tinker_cookbook.completers import completer_from
from tinker_cookbook.eval.inspect_messages import to_message
from tinker_cookbook.eval.inspect_model import ModelRefused, TinkerSamplingAPI, model_for
from tinker_cookbook.eval.testing import scripted_model, sums
from tinker_cookbook.exceptions import ConfigurationError, EvalError
from tinker_cookbook.renderers import ToolCall, get_renderer
from tinker_cookbook.renderers.qwen3 import Qwen3InstructRenderer
from tinker_cookbook.testing import ScriptedEngine, scripted_service, scripted_text
from tinker_cookbook.tokenizer_utils import get_tokenizer

GREEDY = GenerateConfig(temperature=0, max_tokens=8)


@pytest.fixture(autouse=True)
def no_display() -> None:
    init_display_type("none")


@pytest.fixture(scope="module")
def nano() -> Model:
    return get_model("tinker-cookbook/nano", config=GenerateConfig(max_tokens=12))


async def replies(model: Model, directory: Path, seed: int | None, epochs: int) -> dict:
    (log,) = await eval_async(
        sums(3), [model], log_dir=str(directory), seed=seed, epochs=epochs, ctl_server=False
    )
    return {(s.id, s.epoch): s.output.completion for s in log.samples or []}


async def test_epochs_differ_and_a_repeated_evaluation_does_not(
    nano: Model, tmp_path: Path
) -> None:
    first = await replies(nano, tmp_path, seed=5, epochs=8)
    assert len(first) == 24
    for i in range(3):  # nano's replies are short, so some are equal
        assert len({first[f"sum-{i}", epoch] for epoch in range(1, 9)}) > 2
    assert await replies(nano, tmp_path, seed=5, epochs=8) == first
    # fewer epochs are the first of many, as in an evaluation that is continued with more
    assert (await replies(nano, tmp_path, seed=5, epochs=2)).items() <= first.items()
    assert await replies(nano, tmp_path, seed=6, epochs=8) != first
    random = await replies(nano, tmp_path, seed=None, epochs=8)
    assert random != await replies(nano, tmp_path, seed=None, epochs=8)


async def test_every_request_has_a_seed_of_its_own(tmp_path: Path) -> None:
    seeds = []
    for _ in range(2):
        model, engine = scripted_model(tmp_path / "store", lambda asked: "7<|im_end|>")
        await replies(model, tmp_path, seed=5, epochs=8)
        seeds.append({request.seed for request in engine.samples})
        assert len(seeds[-1]) == 24 and None not in seeds[-1]
    assert seeds[0] == seeds[1]


async def test_seeds_outside_of_an_evaluation(nano: Model) -> None:
    api = TinkerSamplingAPI("nano")
    config = GenerateConfig(seed=1, num_choices=3, max_tokens=12)
    asked = [ChatMessageUser(content="Tell me something.")]
    outputs = [await api.generate(asked, [], "auto", config) for _ in range(2)]
    texts = [choice.message.text for output in outputs for choice in output.choices]
    assert len(texts) == 6 and len(set(texts)) > 3
    again = await TinkerSamplingAPI("nano").generate(asked, [], "auto", config)
    assert [choice.message.text for choice in again.choices] == texts[:3]


async def test_all_requests_are_in_flight_at_once(tmp_path: Path) -> None:
    model, engine = scripted_model(tmp_path / "store", lambda asked: "7<|im_end|>")
    engine.hold()
    count = 300
    run = asyncio.ensure_future(
        eval_async(sums(count), [model], log_dir=str(tmp_path), ctl_server=False)
    )
    while len(engine.samples) < count:
        assert not run.done()
        await asyncio.sleep(0.01)
    engine.release()
    (log,) = await run
    assert log.status == "success" and log.results is not None
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(
        sum("7" in str(2 * i + 1) and str(2 * i + 1) in "7" for i in range(count)) / count
    )


async def test_logprobs_are_those_of_the_engine() -> None:
    completer = await completer_from("nano")
    client, renderer = completer.sampling_client, completer.renderer
    config = GenerateConfig(temperature=0, max_tokens=6, logprobs=True, top_logprobs=3)
    model = model_for(client, renderer, "nano", config)
    output = await model.generate("How much is 4 + 5?")
    prompt = renderer.build_generation_prompt([{"role": "user", "content": "How much is 4 + 5?"}])
    params = tinker.SamplingParams(temperature=0, max_tokens=6, stop=renderer.get_stop_sequences())
    direct = (await client.sample(prompt, 1, params, topk_sample_logprobs=3)).sequences[0]
    assert output.choices[0].logprobs is not None
    content = output.choices[0].logprobs.content
    assert [row.logprob for row in content] == pytest.approx(list(direct.logprobs or []))
    assert "".join(row.token for row in content) == renderer.tokenizer.decode(direct.tokens)
    for row in content:
        assert row.top_logprobs is not None and len(row.top_logprobs) == 3
        assert row.top_logprobs[0].token == row.token  # greedy
        assert row.top_logprobs[0].logprob == pytest.approx(row.logprob)
    # and those of the whole text, scored at once
    whole = tinker.ModelInput.from_ints([*prompt.to_ints(), *direct.tokens])
    scored = await client.compute_logprobs(whole)
    assert [row.logprob for row in content] == pytest.approx(scored[prompt.length :], abs=1e-4)
    assert output.usage is not None and output.time is not None
    assert output.usage.input_tokens == prompt.length
    assert output.usage.output_tokens == len(direct.tokens)


@tool
def weather() -> Tool:
    async def execute(city: str, days: int = 1) -> str:
        """The weather forecast.

        Args:
            city: name of the city
            days: number of days
        """
        return f"{days} days of rain in {city}"

    return execute


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>'


@pytest.mark.parametrize("renderer_name", ["qwen3_instruct", "template"])
async def test_tools_go_to_the_model_and_back(tmp_path: Path, renderer_name: str) -> None:
    tokenizer, prompts = get_tokenizer("nano"), []

    def reply(asked) -> str:  # noqa: ANN001
        prompts.append(tokenizer.decode(asked.prompt))
        return f"Let me see.\n{CALL}<|im_end|>" if len(prompts) == 1 else "Rain.<|im_end|>"

    model, _ = scripted_model(tmp_path / "store", reply, renderer_name=renderer_name)
    task = Task(
        dataset=[Sample(input="Weather in Oslo?", target="Rain")],
        solver=[use_tools(weather()), generate()],
        scorer=includes(),
    )
    (log,) = await eval_async(task, [model], log_dir=str(tmp_path), ctl_server=False)
    assert log.samples is not None and log.status == "success", log.error
    called, result, last = log.samples[0].messages[-3:]
    assert isinstance(called, ChatMessageAssistant) and called.tool_calls is not None
    (call,) = called.tool_calls
    assert (call.function, call.arguments) == ("weather", {"city": "Oslo", "days": 3})
    assert called.text == "Let me see."
    assert isinstance(result, ChatMessageTool) and result.text == "3 days of rain in Oslo"
    assert last.text == "Rain."
    # the tool is declared, and the second prompt continues the first with call and result
    assert '"name": "weather"' in prompts[0] and "name of the city" in prompts[0]
    assert prompts[1].startswith(prompts[0].rpartition("<|im_start|>")[0])
    assert CALL in prompts[1] and "3 days of rain in Oslo" in prompts[1]


async def test_a_call_that_cannot_be_parsed_is_answered_with_its_error(tmp_path: Path) -> None:
    tokenizer, prompts = get_tokenizer("nano"), []
    broken = '<tool_call>\n{"name": "weather", "arguments": oops}\n</tool_call>'

    def reply(asked) -> str:  # noqa: ANN001
        prompts.append(tokenizer.decode(asked.prompt))
        return f"{broken}<|im_end|>" if len(prompts) == 1 else "Sorry.<|im_end|>"

    model, _ = scripted_model(tmp_path / "store", reply)
    task = Task(dataset=[Sample(input="?")], solver=[use_tools(weather()), generate()])
    (log,) = await eval_async(task, [model], log_dir=str(tmp_path), ctl_server=False)
    assert log.samples is not None and log.status == "success", log.error
    called, result = log.samples[0].messages[-3:-1]
    assert isinstance(called, ChatMessageAssistant) and isinstance(result, ChatMessageTool)
    assert called.tool_calls is not None and result.error is not None
    assert result.error.message == called.tool_calls[0].parse_error
    assert broken in prompts[1] and result.error.message[:20] in prompts[1]


async def test_reasoning_is_content_of_its_own(tmp_path: Path) -> None:
    text = "<think>\nTwo and two.\n</think>\n\nFour.<|im_end|>"
    model, _ = scripted_model(tmp_path, lambda asked: text, renderer_name="qwen3")
    output = await model.generate("2 + 2?")
    reasoning, answer = output.message.content_list
    assert isinstance(reasoning, ContentReasoning) and reasoning.reasoning == "Two and two."
    assert isinstance(answer, ContentText) and answer.text == "Four." == output.completion
    assert to_message(output.message)["content"] == [
        {"type": "thinking", "thinking": "Two and two."},
        {"type": "text", "text": "Four."},
    ]


async def test_reasoning_that_the_prompt_opens_is_no_answer_when_truncated(tmp_path: Path) -> None:
    """The parser does not see the prompt: it takes a reply without a closing tag for text."""
    engine = ScriptedEngine(reply=scripted_text("nano", lambda asked: "Maybe it is 5, since"))
    client = scripted_service(engine, tmp_path).create_sampling_client(base_model="nano")
    renderer = OpensThinking(get_tokenizer("nano"))
    model = model_for(client.result(), renderer, "nano")
    output = await model.generate("How much is 2 + 2?", config=GenerateConfig(max_tokens=3))
    assert output.choices[0].stop_reason == "max_tokens" and output.completion == ""
    (reasoning,) = output.message.content
    assert isinstance(reasoning, ContentReasoning) and reasoning.reasoning


class OpensThinking(Qwen3InstructRenderer):
    """Like DeepSeek's: the prompt ends with the opening tag, which the reply does not repeat."""

    def build_generation_prompt(self, *args: Any, **keys: Any) -> tinker.ModelInput:
        prompt = super().build_generation_prompt(*args, **keys)
        opened = self.tokenizer.encode("<think>\n", add_special_tokens=False)
        return tinker.ModelInput.from_ints([*prompt.to_ints(), *opened])


async def test_stop_sequences_are_cut_and_those_of_the_renderer_stay(tmp_path: Path) -> None:
    model, engine = scripted_model(tmp_path, lambda asked: "a b\n\nQ: c<|im_end|>")
    output = await model.generate("?", config=GenerateConfig(stop_seqs=["\n\nQ:"]))
    assert (output.completion, output.stop_reason) == ("a b", "stop")
    assert engine.samples[0].stop_strings == ("<|im_end|>", "\n\nQ:")
    assert (await model.generate("?")).completion == "a b\n\nQ: c"
    assert engine.samples[1].stop_strings == () and engine.samples[1].stop_tokens


async def test_stop_sequences_end_the_sampling_of_a_real_model(nano: Model) -> None:
    whole = await nano.generate("Who are you?", config=GREEDY)
    stop = whole.completion[6:9]
    config = GREEDY.merge(GenerateConfig(stop_seqs=[stop]))
    cut = await nano.generate("Who are you?", config=config)
    assert cut.completion == whole.completion.partition(stop)[0] != ""
    assert cut.stop_reason == "stop"
    assert cut.usage is not None and whole.usage is not None
    assert cut.usage.output_tokens < whole.usage.output_tokens


async def test_stop_reasons(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path, lambda asked: "one two three four<|im_end|>")
    assert (await model.generate("?")).stop_reason == "stop"
    short = await model.generate("?", config=GenerateConfig(max_tokens=2))
    assert short.stop_reason == "max_tokens"
    words = "word " * 2040  # nano's context is 2048 tokens
    full = await model.generate(words)
    assert (full.completion, full.stop_reason) == ("", "model_length")
    assert full.error is not None and "no room for a reply" in full.error


async def test_settings_reach_the_sampler(tmp_path: Path) -> None:
    model, engine = scripted_model(
        tmp_path, lambda asked: "x<|im_end|>", GenerateConfig(temperature=0.3, top_p=0.9)
    )
    assert model.config.max_connections == 512
    output = await model.generate("?", config=GenerateConfig(top_k=7, num_choices=2))
    assert len(output.choices) == 2
    request = engine.samples[0]
    assert (request.temperature, request.top_p, request.top_k) == (0.3, 0.9, 7)
    assert (request.num_samples, request.max_tokens, request.seed) == (2, 256, None)


@pytest.mark.parametrize(
    "setting",
    [
        {"frequency_penalty": 0.5},
        {"logit_bias": {5: 1.0}},
        {"best_of": 3},
        {"reasoning_effort": "high"},
        {"prompt_logprobs": 1},
        {"batch": True},
        {"extra_body": {"x": 1}},
        {"top_logprobs": 3},
    ],
)
async def test_settings_that_would_be_ignored_are_refused(tmp_path: Path, setting: dict) -> None:
    config = GenerateConfig(**setting)
    with pytest.raises(ModelRefused, match=next(iter(setting))):
        scripted_model(tmp_path, lambda asked: "x", config)
    model, engine = scripted_model(tmp_path, lambda asked: "x")
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        await model.generate("?", config=config)
    assert engine.samples == []


def test_settings_without_effect_are_accepted(tmp_path: Path) -> None:
    neutral = GenerateConfig(frequency_penalty=0, best_of=1, parallel_tool_calls=True, batch=False)
    scripted_model(tmp_path, lambda asked: "x", neutral)


async def test_what_text_models_cannot_do_is_refused(tmp_path: Path) -> None:
    model, engine = scripted_model(tmp_path, lambda asked: "x<|im_end|>")
    image = "data:image/png;base64,iVBORw0KGgo="
    with pytest.raises(EvalError, match="content of type 'image'"):
        await model.generate([ChatMessageUser(content=[ContentImage(image=image)])])
    info = ToolInfo(name="weather", description="The weather.")
    for choice in ("any", ToolFunction("weather")):
        with pytest.raises(EvalError, match="cannot be enforced"):
            await model.generate("?", tools=[info], tool_choice=choice)
    assert engine.samples == []
    assert (await model.generate("?", tools=[info], tool_choice="none")).completion == "x"


def test_model_arguments(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"dtipe='x' is unknown \(did you mean dtype\?\)"):
        TinkerSamplingAPI("nano", dtipe="x")
    with pytest.raises(ModelRefused, match="model_path"):
        TinkerSamplingAPI("nano", model_path=str(tmp_path / "absent"))
    with pytest.raises(ModelRefused, match="renderer"):
        TinkerSamplingAPI("nano", renderer_name="qwen33")
    renderer = get_renderer("qwen3", get_tokenizer("nano"), model_name="nano")
    api = TinkerSamplingAPI("nano", renderer_name="qwen3", dtype="float32")
    assert type(api.renderer) is type(renderer)


def test_calls_of_the_history_keep_their_ids() -> None:
    from inspect_ai.tool import ToolCall as InspectToolCall

    call = InspectToolCall(id="c1", function="f", arguments={"x": "ä"})
    message = to_message(ChatMessageAssistant(content="", tool_calls=[call]))
    (converted,) = message["tool_calls"]
    assert isinstance(converted, ToolCall) and converted.id == "c1"
    assert json.loads(converted.function.arguments) == {"x": "ä"}
