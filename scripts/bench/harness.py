"""What every benchmark shares: its keys, the run with its rounds, the rows and the last line.

Contestants are made one after the other and then measured in turns, round by round, so that what
the machine does meanwhile meets all of them. Only one of them computes at a time.
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
from report import keep, text_table
from revisions import Refused, revision

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError, TrainingError

PACKAGES = ("torch", "transformers", "peft", "trl", "tinker")
PATHS = ("path", "state", "sampler_weights", "peft")  # facts of a setup
# How far apart the losses of contestants may be, absolute and relative. Differences of bf16 are
# those of rounding; a target, a weight or a token that is not the same shows in the first digits.
COMPARED_STEPS = 2  # before and after an update; later, differences of rounding have grown
LOSS_TOLERANCE = {"float32": 2e-5, "bfloat16": 5e-3}


@chz.chz
class RunConfig:
    device: str = chz.field(default="cpu", doc="torch device of all contestants")
    threads: int = chz.field(default=2, doc="OpenMP threads of a contestant")
    rounds: int = chz.field(default=3, doc="measurements, after a warm-up")
    save: str | None = chz.field(
        default=None, doc="JSON file that keeps the last line of each benchmark; None: none"
    )
    isolate: bool = chz.field(
        default=True,
        doc="a process per contestant; false: all in this one, quick, without the memory of each",
    )
    answer_seconds: int = chz.field(
        default=1800, doc="a contestant that is silent for longer is given up"
    )

    @property
    def offline(self) -> bool:
        """Whether nothing has to be fetched."""
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
        doc='"150m": a random Qwen3 of 150 M parameters, made once in the runs directory; or a'
        " model's name or directory",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = chz.field(
        default="auto", doc='of the base model; "auto": bfloat16 from 50 M parameters on'
    )
    rank: int = chz.field(default=32, doc="LoRA rank, on all linear layers")
    only: str | None = chz.field(
        default=None,
        doc="words from the names of the contestants to run, e.g. ours,peft; None: all",
    )

    gemm: int = chz.field(
        default=4096, doc="rows and columns of the matrix product that is called the peak"
    )

    @property
    def offline(self) -> bool:
        return self.model in ("150m", "nano") or models.is_local_path(self.model)


@chz.chz
class AgainstConfig(RunConfig):
    against: str | None = chz.field(
        default=None,
        doc="revision of this repository that is measured in turns with the present code, by the"
        " scripts/bench of its own; None: none",
    )

    @chz.validate
    def _isolated(self) -> None:
        if self.against is not None and not self.isolate:
            raise ConfigurationError(f"against={self.against} needs isolate=true")


_NOT_SETTINGS = ("save", "isolate", "answer_seconds", "vllm_python", "threads", "device")


class Run:
    """One benchmark: its scratch directory, what was started in it, its rows."""

    def __init__(self, name: str, config: RunConfig, scratch: Path) -> None:
        self.name = name
        self.config = config
        self.scratch = scratch
        self.store = str(scratch / "store")
        self._place = Place(config.isolate, config.threads, config.offline, config.answer_seconds)
        self._started: list[Contestant] = []
        self._clock = time.perf_counter()

    def start(self, contestant: Contestant) -> Contestant:
        """Make a contestant; that it cannot be made is its row, as is an error it has already."""
        if contestant.error is None:
            say(f"{contestant.name}: starting")
            contestant.start(self._place, self.scratch / f"{len(self._started)}.log")
        self._started.append(contestant)
        if contestant.error is not None:
            _explain(contestant)
        return contestant

    def start_chosen(self, contestants: Sequence[Contestant]) -> list[Contestant]:
        """Those that `only` names."""
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
        """The contestant and, where the benchmark is run `against` a revision, its twin there, with
        a store of its own."""
        versions = [contestant]
        rev = getattr(self.config, "against", None)
        if rev is not None:
            try:
                code = revision(rev, self.scratch)
            except Refused as error:
                raise ConfigurationError(f"against={error}") from None
            words = {**contestant.words, "store": str(code.directory / "bench" / "store")}
            name = f"{contestant.name} at {code.name}"
            versions.append(Contestant(name, contestant.target, words, root=code.directory))
        for each in versions:
            self.start(each)
            if each.error is not None:
                raise TrainingError(f"{self.name}: {each.name}: {each.error}")
        return versions

    def prepare(self, target: str, **words: Any) -> dict[str, Any]:
        """What a helper says that the benchmark cannot go without; its process ends."""
        helper = self.start(Contestant(target.partition(":")[2], target, words))
        helper.stop()
        if helper.error is not None:
            raise TrainingError(f"{helper.name}: {helper.error}")
        return helper.facts

    def setup(self) -> dict[str, Any]:
        """The model of this run and the adapter that everybody begins with."""
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
            _explain(contestant)
        elif "seconds" in answer:
            say(f"{contestant.name}: {answer['seconds']:.3f} s")
        return answer

    def rounds(self, contestants: Sequence[Contestant], seeded: Sequence[Contestant] = ()) -> None:
        """Measure all of them in turns; the `seeded` are told the round's seed."""
        for number in range(1, self.config.rounds + 1):
            say(f"round {number} of {self.config.rounds}")
            for contestant in contestants:
                words = {"seed": number} if contestant in seeded else {}
                self.measure(contestant, **words)

    def turns(
        self,
        versions: Sequence[Contestant],
        ways: Mapping[str, Mapping[str, Any]],
        yardstick: Contestant | None = None,
    ) -> None:
        """Measure each way of each version, one version after the other and every second round the
        other way round; what cannot be measured is an error."""
        for number in range(self.config.rounds):
            for way, words in ways.items():
                for version in versions[:: -1 if number % 2 else 1]:
                    if self.measure(version, way=way, **words) is None:
                        raise TrainingError(f"{self.name}: {version.name}: {version.error}")
            if yardstick is not None:
                self.measure(yardstick)

    def finish(self, rows: Sequence[dict[str, Any]], **further: Any) -> dict[str, Any]:
        """Print the table and, as the last line, everything as JSON."""
        line = rounded(
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
            keep(Path(self.config.save), line)
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


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _explain(contestant: Contestant) -> None:
    """Why a contestant has no row; BENCH_DEBUG=1 shows what its process wrote, too."""
    say(f"{contestant.name}: not run: {contestant.error}")
    if os.environ.get("BENCH_DEBUG"):
        say(contestant.log())


# -- rows


def row(
    contestant: Contestant,
    tokens: int,
    reference: Contestant,
    flops: float,
    yardstick: Contestant,
    **further: Any,
) -> dict[str, Any]:
    """tokens/s by the median time. The ratio is the median over the rounds, so that what disturbed
    one of them is in both of its sides. GEMM share: model FLOPs per second against the best matrix
    product of the run.
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


def labelled(
    row: dict[str, Any], version: Contestant, versions: Sequence[Contestant], way: str
) -> dict[str, Any]:
    """A row of one of the versions: with how many times as fast as the revision the present code is
    in it, or with the revision's name."""
    if len(versions) == 1:
        return row
    present, _ = versions
    if version is not present:
        return {**row, "name": f"{row['name']}, {version.name}"}
    own, theirs = (
        [each["seconds"] for each in one.measured if each["way"] == way] for one in versions
    )
    return {**row, "times_as_fast": ratio(theirs, own)}


def basis_of(facts: dict[str, Any], yardstick: Contestant) -> dict[str, Any]:
    """What the figures of a run are relative to, without the paths of this machine."""
    return {
        "model": {key: value for key, value in facts.items() if key not in PATHS},
        "gemm_tflops": max(yardstick.values("tflops"), default=None),
    }


def ratio(reference: Sequence[float], seconds: Sequence[float]) -> float:
    return median(theirs / own for theirs, own in zip(reference, seconds))


def losses(contestant: Contestant) -> list[float]:
    """Of the warm-up and of every measurement: one optimizer step each."""
    return [contestant.facts["loss"], *contestant.values("loss")] if contestant.facts else []


def check_losses(contestants: Sequence[Contestant], dtype: str) -> float:
    """The largest difference from the first contestant's losses at the first steps. Whoever is
    further away than rounding did other work, and its times count for nothing."""
    tolerance, largest = LOSS_TOLERANCE[dtype], 0.0
    running = [contestant for contestant in contestants if contestant.error is None]
    for contestant in running[1:]:
        pairs = zip(losses(contestant)[:COMPARED_STEPS], losses(running[0]))
        for step, (own, first) in enumerate(pairs):
            if not abs(own - first) <= tolerance * (1 + abs(first)):
                contestant.error = (
                    f"loss {own:.6g} at step {step + 1}, {running[0].name} has {first:.6g}"
                )
                say(f"{contestant.name}: {contestant.error}")
                break
            largest = max(largest, abs(own - first))
    return largest


def rounded(value: Any) -> Any:
    """Every number in it to six digits."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {key: rounded(each) for key, each in value.items()}
        case list() | tuple():
            return [rounded(each) for each in value]
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
