"""What becomes of an adapter in other hands: peft, beside the model and merged into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinker_cookbook.engine.checkpoints import write_adapter
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.testing import make_rows, make_trainer


def logprobs(model: Any, rows: list[Any]) -> list[np.ndarray]:
    found = []
    with torch.no_grad():
        for row in rows:
            logits = model(torch.from_numpy(row.tokens)[None]).logits[0]
            targets = torch.from_numpy(row.targets)[:, None]
            found.append(logits.log_softmax(-1).gather(1, targets)[:, 0].numpy())
    return found


@pytest.mark.parametrize("unembed", [True, False])
@pytest.mark.parametrize("untie", [True, False])
@pytest.mark.parametrize("family", ["tiny_qwen3", "tiny_llama"])
def test_merging_needs_untied_embeddings(
    family: str, untie: bool, unembed: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """As README says: tied embeddings must be untied before an adapter of the unembedding is
    merged, or what it adds lands in the input embeddings, too."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path, rows = request.getfixturevalue(family), make_rows(0)
    trainer = make_trainer(path, LoraSpec(rank=4, train_unembed=unembed))
    ours = trainer.forward(rows, "cross_entropy", None).logprobs
    write_adapter(trainer.adapter, path, tmp_path)

    def worst(model: Any) -> float:
        return max(float(np.abs(a - b).max()) for a, b in zip(ours, logprobs(model, rows)))

    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tied = bool(base.config.tie_word_embeddings)
    assert tied == (family == "tiny_qwen3") == trainer.base.facts.tied
    if untie:
        base.config.tie_word_embeddings = False
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    model = PeftModel.from_pretrained(base, str(tmp_path))
    assert worst(model) < 1e-4  # beside the model
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    gap = worst(again)
    print(f"{family}: untied first {untie}, unembedding {unembed}: merged differs by {gap:.1e}")
    if tied and unembed and not untie:
        assert gap > 0.1
    else:
        assert gap < 1e-4
