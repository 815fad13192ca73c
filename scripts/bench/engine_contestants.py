"""This project's engine as a contestant, called through the Tinker API."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tinker
from basis import ADAM, Batch, model_path, random_sequences, shape_of
from pairs import Pairs

from tinker_cookbook.preference.losses import PairLossSettings
from tinker_cookbook.preference.objective import PairObjective
from tinker_cookbook.preference.reference import ReferenceLogprobs
from tinker_cookbook.sequences import Sequence, to_datum
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.service.local import LocalServiceClient

LARGE = 50_000_000  # parameters; from this size on "auto" is bfloat16, as in the engine


def connected(dtype: str, device: str, store: str) -> LocalServiceClient:
    service = connect(engine=EngineConfig(dtype=dtype, device=device), store_dir=store)
    assert isinstance(service, LocalServiceClient)
    return service


def adam(lr: float = ADAM["lr"]) -> tinker.AdamParams:
    return tinker.AdamParams(
        learning_rate=lr, beta1=ADAM["betas"][0], beta2=ADAM["betas"][1], eps=ADAM["eps"]
    )


def datums(batch: Batch) -> list[tinker.Datum]:
    """Convert a batch to datums.

    The engine sums the loss over tokens, but the other contestants take the mean: weights and
    advantages are therefore divided by the number of loss tokens.
    """
    out, scale, first = [], 1 / batch.loss_tokens, batch.first - 1
    for index, sequence in enumerate(batch.sequences):
        length = len(sequence) - 1
        inputs: dict[str, Any] = {"target_tokens": np.array(sequence[1:])}
        if batch.logprobs is None or batch.advantages is None:
            weights = np.zeros(length, np.float32)
            weights[first:] = scale
            inputs["weights"] = weights
        else:
            for key, values in (
                ("logprobs", batch.logprobs[index]),
                ("advantages", batch.advantages[index] * scale),
            ):
                inputs[key] = np.zeros(length, np.float32)
                inputs[key][first:] = values
        out.append(
            tinker.Datum(
                model_input=tinker.ModelInput.from_ints(sequence[:-1]), loss_fn_inputs=inputs
            )
        )
    return out


class Setup:
    """Create the model and an adapter after one training step, for all other processes."""

    def __init__(
        self,
        model: str,
        dtype: str,
        device: str,
        rank: int,
        store: str,
        step_tokens: int = 64,
    ) -> None:
        path = model_path(model)
        shape = shape_of(path, rank)
        if dtype == "auto":
            dtype = "bfloat16" if shape["parameters"] >= LARGE else "float32"
        service = connected(dtype, device, store)
        client = service.create_lora_training_client(path, rank=rank, seed=0, train_unembed=False)
        # B starts at zero. Without a step, a contestant that ignores the adapter would go
        # unnoticed.
        batch = Batch(random_sequences([step_tokens], shape["vocab_size"], seed=99))
        client.forward_backward(datums(batch), "cross_entropy").result()
        client.optim_step(adam(lr=1e-3)).result()
        state = client.save_state("start").result().path
        sampler_weights = client.save_weights_for_sampler("start").result().path
        self.facts = {
            "path": path,
            "dtype": dtype,
            **shape,
            "state": state,
            "sampler_weights": sampler_weights,
            "peft": str(service.store.find(state).directory),
        }
        service.close()


class Training:
    """forward_backward and optim_step of one batch.

    share: the engine may compute a shared prefix once. unembed: also train an adapter on the
    unembedding, starting from a fresh one.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        batch: str,
        device: str,
        rank: int,
        store: str,
        loss_fn: str,
        share: bool = True,
        unembed: bool = False,
    ) -> None:
        service = connected(facts["dtype"], device, store)
        self.client = service.create_lora_training_client(
            facts["path"], rank=rank, seed=0, train_unembed=unembed
        )
        if not unembed:
            self.client.load_state(facts["state"]).result()
        self.data = datums(Batch.read(batch))
        self.loss_fn = loss_fn
        self.share = share
        self.facts = {"loss": self.measure()["loss"]}

    def measure(self) -> dict[str, float]:
        with shared_prefixes(self.share):
            started = time.perf_counter()
            output = self.client.forward_backward(self.data, self.loss_fn)
            step = self.client.optim_step(adam())
            loss = output.result().metrics["loss:sum"]
            step.result()
            return {"seconds": time.perf_counter() - started, "loss": loss}


@dataclass(frozen=True)
class _BaseModel:
    """The reference is the model without an adapter."""

    model_name: str
    load_checkpoint_path: None = None


class PairTraining:
    """A step of preference training as the recipe makes it: the objective and an optimizer step.

    The policy starts with the common adapter; the reference is the base model. count_reference: the
    pairs are scored under the reference in each step, as in the first epoch of a run; otherwise
    their logprobs are stored, as in later ones.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        pairs: str,
        device: str,
        store: str,
        beta: float,
        count_reference: bool,
    ) -> None:
        self.model, self.beta = facts["path"], beta
        self.service = connected(facts["dtype"], device, store)
        # the directory and not facts["state"]: another revision has a store of its own
        self.client = self.service.create_training_client_from_state(facts["peft"], self.model)
        self.data = pair_datums(Pairs.read(pairs))
        self.count_reference = count_reference
        self.objective = self._new_objective()
        self.facts = {"loss": self.measure()["loss"]}

    def measure(self) -> dict[str, float]:
        if self.count_reference:
            self.objective = self._new_objective()
        started = time.perf_counter()
        loss = asyncio.run(self._step())
        return {"seconds": time.perf_counter() - started, "loss": loss}

    async def _step(self) -> float:
        losses = await self.objective.submit(self.client, self.data)
        step = self.client.optim_step(adam())
        outputs = [await future for future in losses]
        await step
        return self.objective.metrics(self.data, outputs)["dpo_loss"]

    def _new_objective(self) -> PairObjective:
        """An objective whose reference model is ready but has not scored the pairs."""
        scratch = Path(tempfile.mkdtemp(prefix="bench-reference-"))
        reference = ReferenceLogprobs(self.service, _BaseModel(self.model), scratch)
        asyncio.run(reference.compute([to_datum(Sequence([0, 0], [0, 1]))]))
        tokens_per_pass = self.service.get_server_capabilities().tokens_per_pass
        return PairObjective(PairLossSettings(beta=self.beta), reference, tokens_per_pass)


def pair_datums(pairs: Pairs) -> list[tinker.Datum]:
    """Datums [chosen, rejected, chosen, rejected, ...] with weight 1 on the replies."""
    return [
        to_datum(Sequence([*prompt, *reply], [0] * len(prompt) + [1] * len(reply)))
        for prompt, *replies in zip(pairs.prompts, pairs.chosen, pairs.rejected)
        for reply in replies
    ]


@contextmanager
def shared_prefixes(share: bool) -> Iterator[None]:
    """Switch prefix sharing on or off for the whole process."""
    from tinker_cookbook.engine import packing

    usual = packing.MIN_SHARED_TOKENS
    packing.MIN_SHARED_TOKENS = usual if share else sys.maxsize
    try:
        yield
    finally:
        packing.MIN_SHARED_TOKENS = usual


class ScoreBatch:
    """Computes the logprobs of a batch under the adapter, the sampling logprobs of the RL loss."""

    def __init__(self, facts: dict[str, Any], batch: str, device: str, store: str) -> None:
        service = connected(facts["dtype"], device, store)
        client = service.create_training_client_from_state(facts["state"])
        given = Batch.read(batch)
        plain = Batch(given.sequences, given.prompt)
        output = client.forward(datums(plain), "cross_entropy").result()
        first = given.first - 1
        self.facts = {
            "logprobs": [
                outputs["logprobs"].to_numpy()[first:].tolist()
                for outputs in output.loss_fn_outputs
            ]
        }
        service.close()


class Sampling:
    """Samples several completions of each prompt, without stop tokens."""

    def __init__(
        self,
        facts: dict[str, Any],
        device: str,
        store: str,
        prompts: int,
        prompt_tokens: int,
        samples: int,
        tokens: int,
    ) -> None:
        service = connected(facts["dtype"], device, store)
        self.client = service.create_sampling_client(facts["sampler_weights"])
        self.vocab_size = facts["vocab_size"]
        self.shape = (prompts, prompt_tokens)
        self.samples = samples
        self.tokens = tokens
        self._ask(random_sequences([prompt_tokens] * prompts, self.vocab_size, seed=0), tokens=8)

    def measure(self, seed: int) -> dict[str, float]:
        """Seconds with new prompts, then with the same prompts again (cached)."""
        count, length = self.shape
        prompts = random_sequences([length] * count, self.vocab_size, seed)
        first = self._ask(prompts, self.tokens)
        return {"seconds": first, "seconds_again": self._ask(prompts, self.tokens)}

    def _ask(self, prompts: list[list[int]], tokens: int) -> float:
        params = tinker.SamplingParams(max_tokens=tokens, temperature=1.0, stop=[])
        started = time.perf_counter()
        futures = [
            self.client.sample(tinker.ModelInput.from_ints(prompt), self.samples, params)
            for prompt in prompts
        ]
        answers = [future.result() for future in futures]
        seconds = time.perf_counter() - started
        lengths = {len(sequence.tokens) for answer in answers for sequence in answer.sequences}
        if lengths != {tokens}:
            raise RuntimeError(f"sequences of {sorted(lengths)} tokens, asked for {tokens}")
        return seconds
