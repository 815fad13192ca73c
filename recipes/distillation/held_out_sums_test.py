from __future__ import annotations

from recipes.distillation.held_out_sums import HeldOutSums
from recipes.math_rl.arithmetic import Arithmetic
from tinker_cookbook.rl.metric_util import RLTestSetEvaluator
from tinker_cookbook.service import EngineConfig, connect


async def test_the_metrics_of_rl_on_the_sums_of_rl() -> None:
    service = connect(None, EngineConfig(num_threads=1))
    client = await service.create_sampling_client(base_model="nano")
    evaluator = HeldOutSums(renderer_name="qwen3_instruct", max_tokens=40, num_sums=12)()
    assert evaluator.lines() == []
    metrics = await evaluator(client)
    assert evaluator.lines()[0] == "test: 12 of 12 groups completed, e.g."
    data = Arithmetic(
        model_name_for_tokenizer="nano",
        renderer_name="qwen3_instruct",
        group_size=8,
        groups_per_batch=32,
        test_size=12,
        seed=5,
    )
    _, test = await data()
    assert test is not None
    assert await RLTestSetEvaluator(test, 40)(client) == metrics
    assert 0 < metrics["test/env/all/correct"] < 1
