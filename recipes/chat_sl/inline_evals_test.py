"""inline_evals=inspect: the evaluator that it adds, and a stored config that has it already."""

from __future__ import annotations

import pytest

from recipes.chat_sl.train import CLI, DEFAULTS, data_of, with_inline_evals
from tinker_cookbook.eval.inspect_evaluators import InspectEvaluatorBuilder
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.supervised.chat_config import resolve_chat_config
from tinker_cookbook.utils.plain_data import plain


def resolved(config: CLI) -> CLI:
    return with_inline_evals(resolve_chat_config(config, DEFAULTS, data_of(config))).config


def test_the_evaluator_has_the_renderer_of_the_run() -> None:
    config = CLI(inline_evals="inspect", inspect_tasks=["ifeval"], renderer_name="qwen3")
    (builder,) = resolved(config).infrequent_evaluator_builders
    assert isinstance(builder, InspectEvaluatorBuilder)
    assert (builder.tasks, builder.limit) == (["ifeval"], 100)
    assert (builder.renderer_name, builder.model_name) == ("qwen3", "nano")
    assert resolved(CLI()).infrequent_evaluator_builders == []


def test_a_stored_config_does_not_get_it_twice() -> None:
    stored = plain(resolved(CLI(inline_evals="inspect")))
    assert len(stored["infrequent_evaluator_builders"]) == 1
    assert CLI.drop_resolved_keys(stored)["infrequent_evaluator_builders"] == []


def test_tasks_without_inline_evals_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="inspect_tasks= has no effect without inline_ev"):
        resolved(CLI(inspect_tasks=["ifeval"]))
