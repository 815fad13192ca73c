"""Shared by all benchmarks: config keys, the measurement loop, result rows and the JSON line.

Contestants are created one after the other and then measured in turns, round by round, so that
other load on the machine affects all of them. Only one contestant computes at a time.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Literal

import chz
import psutil
from contestant import Contestant, Place
from report import save_result, text_table
from revisions import ComparisonError, revision

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError, TrainingError

PACKAGES = ("torch", "transformers", "peft", "trl", "tinker")
PATHS = ("path", "state", "sampler_weights", "peft")  # facts of a setup that are local paths
# Tolerance for the losses of different contestants, absolute and relative. bf16 losses differ by
# rounding only; a different target, weight or token would change the first digits.
COMPARED_STEPS = 2  # before and after one update; in later steps rounding differences grow
LOSS_TOLERANCE = {"float32": 2e-5, "bfloat16": 5e-3}


@chz.chz
class RunConfig:
    device: str = chz.field(default="cpu", doc="torch device of all contestants")
    threads: int = chz.field(default=2, doc="OpenMP threads of a contestant")
    rounds: int = chz.field(default=3, doc="measurements after a warm-up")
    save: str | None = chz.field(
        default=None, doc="JSON file for the results of each benchmark (None: not saved)"
    )
    isolate: bool = chz.field(
        default=True,
        doc="one process per contestant; false: all in this process (quick, but no memory figures)",
    )
    answer_seconds: int = chz.field(
        default=1800, doc="timeout for one answer of a contestant, in seconds"
    )

    @property
    def offline(self) -> bool:
        """Whether nothing has to be downloaded."""
        return True

    @chz.validate
    def _positive(self) -> None:
        for key, field in chz.chz_fields(self).items():
            value = getattr(self, key)
            if field.final_type is int and value < 1:
                raise ConfigurationError(f"{key}={value} must be at least 1")


@chz.chz
class BenchConfig(RunConfig):
    model: str = chz.field(
        default="150m",
        doc='"150m": a random Qwen3 with 150 M parameters, created once in the runs directory; or a'
        " model's name or directory",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = chz.field(
        default="auto", doc='dtype of the base model; "auto": bfloat16 from 50 M parameters on'
    )
    rank: int = chz.field(default=32, doc="LoRA rank, on all linear layers")
    only: str | None = chz.field(
        default=None,
        doc="run only contestants whose name contains one of these, e.g. ours,peft (None: all)",
    )

    gemm: int = chz.field(
        default=4096, doc="size of the square matrix product that measures the GEMM peak"
    )

    @property
    def offline(self) -> bool:
        return self.model in ("150m", "nano") or models.is_local_path(self.model)


@chz.chz
class AgainstConfig(RunConfig):
    against: str | None = chz.field(
        default=None,
        doc="revision of this repository to measure in turns with the current code, using its own"
        " scripts/bench (None: none)",
    )

    @chz.validate
    def _isolated(self) -> None:
        if self.against is not None and not self.isolate:
            raise ConfigurationError(f"against={self.against} needs isolate=true")


_NOT_SETTINGS = ("save", "isolate", "answer_seconds", "vllm_python", "threads", "device")


class Run:
    """One run of a benchmark: its scratch directory, contestants and result rows."""

    def __init__(self, name: str, config: RunConfig, scratch: Path) -> None:
        self.name = name
        self.config = config
        self.scratch = scratch
        self.store = str(scratch / "store")
        self._place = Place(config.isolate, config.threads, config.offline, config.answer_seconds)
        self._started: list[Contestant] = []
        self._clock = time.perf_counter()

    def start(self, contestant: Contestant) -> Contestant:
        """Start a contestant. If that fails, the error is reported in its row of the table."""
        if contestant.error is None:
            log_line(f"{contestant.name}: starting")
            contestant.start(self._place, self.scratch / f"{len(self._started)}.log")
        self._started.append(contestant)
        if contestant.error is not None:
            _log_failure(contestant)
        return contestant

    def start_chosen(self, contestants: Sequence[Contestant]) -> list[Contestant]:
        """Start the contestants selected by `only`."""
        only = getattr(self.config, "only", None) or ""
        words = [word.strip().lower() for word in only.split(",") if word.strip()]
        for word in words:
            if not any(word in contestant.name.lower() for contestant in contestants):
                known = "; ".join(contestant.name for contestant in contestants)
                raise ConfigurationError(
                    f"only={word}: no contestant has that in its name: {known}"
                )
        return [
            self.start(contestant)
            for contestant in contestants
            if not words or any(word in contestant.name.lower() for word in words)
        ]

    def start_versions(self, contestant: Contestant) -> list[Contestant]:
        """Start the contestant and, with `against=`, the same contestant at that revision.

        The revision runs its own scripts/bench with the same target and arguments, so these must
        keep their names.
        """
        versions = [contestant]
        rev = getattr(self.config, "against", None)
        if rev is not None:
            try:
                code = revision(rev, self.scratch)
            except ComparisonError as error:
                raise ConfigurationError(f"against={error}") from None
            words = {**contestant.words, "store": str(code.directory / "bench" / "store")}
            name = f"{contestant.name} at {code.name}"
            versions.append(Contestant(name, contestant.target, words, root=code.directory))
        for version in versions:
            self.start(version)
            if version.error is not None:
                raise TrainingError(f"{self.name}: {version.name}: {version.error}")
        return versions

    def prepare(self, target: str, **words: Any) -> dict[str, Any]:
        """Run a helper to completion and return its facts; raises TrainingError if it fails."""
        helper = self.start(Contestant(target.partition(":")[2], target, words))
        helper.stop()
        if helper.error is not None:
            raise TrainingError(f"{helper.name}: {helper.error}")
        return helper.facts

    def setup(self) -> dict[str, Any]:
        """Create the model and the adapter that all contestants start from."""
        config = self.config
        assert isinstance(config, BenchConfig)
        return self.prepare(
            "engine_contestants:Setup",
            model=config.model,
            dtype=config.dtype,
            device=config.device,
            rank=config.rank,
            store=self.store,
        )

    def start_yardstick(self, dtype: str) -> Contestant:
        config = self.config
        assert isinstance(config, BenchConfig)
        words = {"dtype": dtype, "device": config.device, "size": config.gemm}
        return self.start(Contestant("matrix product", "basis:MatrixProduct", words))

    def measure(self, contestant: Contestant, **words: Any) -> dict[str, Any] | None:
        if contestant.error is not None:
            return None
        answer = contestant.measure(self._place, **words)
        if answer is None:
            _log_failure(contestant)
        elif "seconds" in answer:
            log_line(f"{contestant.name}: {answer['seconds']:.3f} s")
        return answer

    def rounds(self, contestants: Sequence[Contestant], seeded: Sequence[Contestant] = ()) -> None:
        """Measure all contestants in turns; `seeded` ones receive the seed of the round."""
        for number in range(1, self.config.rounds + 1):
            log_line(f"round {number} of {self.config.rounds}")
            for contestant in contestants:
                words = {"seed": number} if contestant in seeded else {}
                self.measure(contestant, **words)

    def turns(
        self,
        versions: Sequence[Contestant],
        ways: Mapping[str, Mapping[str, Any]],
        yardstick: Contestant | None = None,
    ) -> None:
        """Measure each way of calling each version, in turns.

        The order of the versions alternates between rounds, so that neither always runs first.
        Raises TrainingError if a measurement fails.
        """
        for number in range(self.config.rounds):
            for way, words in ways.items():
                for version in versions[:: -1 if number % 2 else 1]:
                    if self.measure(version, way=way, **words) is None:
                        raise TrainingError(f"{self.name}: {version.name}: {version.error}")
            if yardstick is not None:
                self.measure(yardstick)

    def finish(self, rows: Sequence[dict[str, Any]], **further: Any) -> dict[str, Any]:
        """Print the table and, as the last line, all results as JSON."""
        line = round_numbers(
            {
                "bench": self.name,
                "date": time.strftime("%Y-%m-%d"),
                "machine": machine(self.config),
                "versions": versions(),
                "settings": {
                    key: getattr(self.config, key)
                    for key in chz.chz_fields(type(self.config))
                    if key not in _NOT_SETTINGS
                },
                "took_seconds": round(time.perf_counter() - self._clock, 1),
                **further,
                "rows": list(rows),
            }
        )
        print(text_table(line["rows"]))
        if self.config.save:
            save_result(Path(self.config.save), line)
        print(json.dumps(line), flush=True)
        return line

    def close(self) -> None:
        for contestant in self._started:
            contestant.stop()


@contextmanager
def run(name: str, config: RunConfig) -> Iterator[Run]:
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        current = Run(name, config, Path(scratch))
        try:
            yield current
        finally:
            current.close()


def log_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _log_failure(contestant: Contestant) -> None:
    """Print why a contestant failed; with BENCH_DEBUG=1 also the output of its process."""
    log_line(f"{contestant.name}: not run: {contestant.error}")
    if os.environ.get("BENCH_DEBUG"):
        log_line(contestant.log())


# -- rows


def row(
    contestant: Contestant,
    tokens: int,
    reference: Contestant,
    flops: float,
    yardstick: Contestant,
    **further: Any,
) -> dict[str, Any]:
    """The result row of a contestant.

    tokens/s: from the median time. ratio: the median of the ratios per round, so that load on the
    machine affects numerator and denominator alike. GEMM share: model FLOP/s relative to the best
    matrix product of the run.
    """
    out: dict[str, Any] = {"name": contestant.name}
    seconds = contestant.values("seconds")
    if contestant.error is not None or not seconds:
        return {**out, "not_run": contestant.error or "no measurement"}
    out["tokens_per_s"] = tokens / median(seconds)
    if reference.error is None and reference.measured:
        out["ratio"] = ratio(reference.values("seconds"), seconds)
    out |= contestant.memory
    if yardstick.error is None:
        best = max(yardstick.values("tflops"))
        out["gemm_share"] = flops / median(seconds) / 1e12 / best
    return {**out, "seconds": seconds, **further}


def label_version(
    row: dict[str, Any], version: Contestant, versions: Sequence[Contestant], way: str
) -> dict[str, Any]:
    """Complete the row of a version: the speed-up over the revision, or the revision's name."""
    if len(versions) == 1:
        return row
    current, _ = versions
    if version is not current:
        return {**row, "name": f"{row['name']}, {version.name}"}
    own, theirs = (
        [entry["seconds"] for entry in each.measured if entry["way"] == way] for each in versions
    )
    return {**row, "times_as_fast": ratio(theirs, own)}


def reference_facts(facts: dict[str, Any], yardstick: Contestant) -> dict[str, Any]:
    """The model and the GEMM peak that the figures refer to, without local paths."""
    return {
        "model": {key: value for key, value in facts.items() if key not in PATHS},
        "gemm_tflops": max(yardstick.values("tflops"), default=None),
    }


def ratio(reference: Sequence[float], seconds: Sequence[float]) -> float:
    return median(theirs / own for theirs, own in zip(reference, seconds))


def losses(contestant: Contestant) -> list[float]:
    """Losses of the warm-up and of each measurement, one optimizer step each."""
    return [contestant.facts["loss"], *contestant.values("loss")] if contestant.facts else []


def check_losses(contestants: Sequence[Contestant], dtype: str) -> float:
    """The largest difference to the first contestant's losses over the first steps.

    A contestant outside the tolerance did not do the same work: it gets an error and no figures.
    """
    tolerance, largest = LOSS_TOLERANCE[dtype], 0.0
    running = [contestant for contestant in contestants if contestant.error is None]
    for contestant in running[1:]:
        pairs = zip(losses(contestant)[:COMPARED_STEPS], losses(running[0]))
        for step, (own, first) in enumerate(pairs):
            if not abs(own - first) <= tolerance * (1 + abs(first)):
                contestant.error = (
                    f"loss {own:.6g} at step {step + 1}, {running[0].name} has {first:.6g}"
                )
                log_line(f"{contestant.name}: {contestant.error}")
                break
            largest = max(largest, abs(own - first))
    return largest


def round_numbers(value: Any) -> Any:
    """Round every float in a nested value to six significant digits."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {key: round_numbers(each) for key, each in value.items()}
        case list() | tuple():
            return [round_numbers(each) for each in value]
        case _:
            return value


# -- the machine


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(config: RunConfig) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": config.threads,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "device": config.device,
    }
