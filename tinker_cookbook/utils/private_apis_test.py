import asyncio
import re
from pathlib import Path

import chz

from tinker_cookbook.utils.private_apis import (
    abandon_task,
    blueprint_parameters,
    defaults_to_none,
    field_doc,
    has_no_default,
)


@chz.chz
class Inner:
    width: int
    depth: int = 2


@chz.chz
class Outer:
    inner: Inner
    name: str = "x"
    tags: list[str] = chz.field(default_factory=list)
    path: str | None = chz.field(default=None, doc="a path")


def test_parameters_are_those_of_the_help_of_chz() -> None:
    blueprint = chz.Blueprint(Outer).apply({"inner": Inner})
    parameters, chosen = blueprint_parameters(blueprint)
    help_rows = blueprint.get_help().partition("Arguments:")[2].splitlines()
    assert [path for path in parameters if path] == [r.split()[0] for r in help_rows if r.strip()]
    assert chosen["inner"] is Inner


def test_fields_without_a_default() -> None:
    fields = chz.chz_fields(Outer)
    assert [name for name in fields if has_no_default(fields[name])] == ["inner"]
    assert [name for name in fields if defaults_to_none(fields[name])] == ["path"]


def test_the_doc_of_a_field() -> None:
    fields = chz.chz_fields(Outer)
    assert (field_doc(fields["path"]), field_doc(fields["name"])) == ("a path", "")


def test_an_abandoned_task_does_not_hold_up_the_end_of_the_loop() -> None:
    async def deaf() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue

    async def main() -> bool:
        task = asyncio.create_task(deaf())
        await asyncio.sleep(0)
        abandon_task(task)
        return task in asyncio.all_tasks()

    assert asyncio.run(asyncio.wait_for(main(), 10)) is False


def test_private_names_are_used_nowhere_else() -> None:
    private = re.compile(
        r"\basyncio\.[\w.]*\._(?!_)\w|_log_destroy_pending|\._make_lazy|\bfields?(\[\w+\])?\._\w|chz\.util\b"
    )
    package = Path(__file__).parents[1]
    found = [
        f"{file.relative_to(package)}: {line.strip()}"
        for file in package.rglob("*.py")
        if file.stem not in ("private_apis", "private_apis_test")
        for line in file.read_text().splitlines()
        if private.search(line)
    ]
    assert not found
