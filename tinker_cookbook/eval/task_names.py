"""Inspect tasks by name: local ones, registered ones, files, and functions by import path.

gsm8k                      a local task (tinker_cookbook/eval/tasks)
inspect_evals/gsm8k        a task that an installed package registers with Inspect
my_task.py, my_task.py@x   the tasks of a file, or one of them
package.module:function    a task function
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

# Inspect has no public way to make a task from its name. Its version is pinned.
from inspect_ai import Task
from inspect_ai._eval.loader import create_file_tasks, load_file_tasks
from inspect_ai._util.error import PrerequisiteError
from inspect_ai._util.registry import registry_find, registry_info, registry_lookup
from rich.text import Text

from tinker_cookbook.eval import tasks as local_tasks
from tinker_cookbook.exceptions import ConfigurationError, EvalError
from tinker_cookbook.utils.error_text import one_line
from tinker_cookbook.utils.misc_utils import python_command

TaskFunction = Callable[..., object]  # each returns a Task, which is checked


def make_tasks(
    specs: Sequence[str | Task | TaskFunction], task_args: Mapping[str, Any] | None = None
) -> list[Task]:
    """Make the tasks, in order. A task gets those of `task_args` that it has parameters for.

    Raises ConfigurationError for an unknown task, for an argument that no task has, and for two
    tasks of one name, whose metrics would overwrite each other; EvalError for a task that cannot be
    made, e.g. because a package is missing.
    """
    args, made, known = dict(task_args or {}), list[Task](), set[str]()
    _check_args_of_local_tasks(specs, args)
    for spec in specs:
        for task in [spec] if isinstance(spec, Task) else _make(spec, args):
            known.update(_parameters_of(task))
            made.append(task)
    if not made:
        raise ConfigurationError("tasks is empty; name one or more, e.g. tasks=ifeval,gsm8k")
    _check_args(args, known)
    names = [task_name(task.name) for task in made]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigurationError(f"tasks: two of them are named {twice!r}; run them one by one")
    return made


def _check_args_of_local_tasks(specs: Sequence[object], args: Mapping[str, Any]) -> None:
    """Before any data is read, if all tasks are local ones."""
    if specs and all(spec in local_tasks.LOCAL for spec in specs if isinstance(spec, str)):
        functions = [local_tasks.load(spec) for spec in specs if isinstance(spec, str)]
        if len(functions) == len(specs):
            _check_args(args, {p for f in functions for p in inspect.signature(f).parameters})


def _check_args(args: Mapping[str, Any], known: set[str]) -> None:
    for key in args:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            has = f"; they have {', '.join(sorted(known))}" if known else ""
            raise ConfigurationError(f"task_args: no task has an argument {key!r}{meant}{has}")


def task_name(name: str) -> str:
    """A task's name without its package, as metrics use it."""
    return name.rpartition("/")[2]


def _parameters_of(task: Task) -> Sequence[str]:
    return registry_info(task).metadata.get("params", ()) if task.registry_name else ()


def _make(spec: str | TaskFunction, args: Mapping[str, Any]) -> list[Task]:
    with _one_line_errors(str(spec)):
        if callable(spec):
            return [_call(spec, getattr(spec, "__name__", str(spec)), args)]
        file, _, name = spec.partition("@")
        if file.endswith(".py"):
            return _from_file(file, name, spec, args)
        if spec in local_tasks.LOCAL:
            return [_call(local_tasks.load(spec), spec, args)]
        if ":" in spec:
            return [_call(_import(spec), spec, args)]
        if (registered := registry_lookup("task", spec)) is not None and callable(registered):
            return [_call(registered, spec, args)]
        # Inspect only warns of a package that cannot be loaded.
        for entry_point in entry_points(group="inspect_ai", name=spec.partition("/")[0]):
            entry_point.load()
    raise _unknown(spec)


def _call(function: TaskFunction, spec: str, args: Mapping[str, Any]) -> Task:
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {key: value for key, value in args.items() if takes_all or key in parameters}
    try:
        inspect.signature(function).bind(**given)
    except TypeError as error:
        raise ConfigurationError(f"task_args for {spec}: {error}") from None
    made = function(**given)
    if not isinstance(made, Task):
        raise ConfigurationError(
            f"tasks={spec}: it returns {type(made).__name__}, not an Inspect Task"
        )
    return made


def _from_file(file: str, name: str, spec: str, args: Mapping[str, Any]) -> list[Task]:
    path = Path(file)
    if not path.is_file():
        raise ConfigurationError(f"tasks={spec}: there is no file {file}")
    compile(path.read_bytes(), file, "exec")  # Inspect passes over a file with a syntax error
    load_file_tasks(path.absolute())
    if name and registry_lookup("task", name) is None:
        raise ConfigurationError(f"tasks={spec}: {file} has no task {name!r}")
    found = create_file_tasks(path, [name] if name else None, dict(args))
    if not found:
        raise ConfigurationError(f"tasks={spec}: {file} has no function decorated with @task")
    return found


def _import(spec: str) -> TaskFunction:
    module, _, name = spec.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the module imports
        raise ConfigurationError(
            f"tasks={spec}: no module {error.name!r} in the working directory or installed"
        ) from None
    function = getattr(found, name, None)
    if not callable(function):
        raise ConfigurationError(f"tasks={spec}: module {module!r} has no function {name!r}")
    return function


def _unknown(spec: str) -> ConfigurationError:
    registered = {registry_info(task).name for task in registry_find(_is_task)}
    known = [*local_tasks.LOCAL, *sorted(registered)]
    near = difflib.get_close_matches(spec, known, 3, 0.5)
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    package = spec.partition("/")[0]
    if package == "inspect_evals" and not any(n.startswith("inspect_evals/") for n in registered):
        return ConfigurationError(
            f"tasks={spec} needs the package inspect-evals, which is not installed:"
            f" {python_command()} -m pip install inspect-evals"
        )
    return ConfigurationError(
        f"tasks={spec} is unknown{meant}; local tasks: {', '.join(local_tasks.LOCAL)}; others by"
        " package/name, file.py@name or module:function"
    )


def _is_task(info: Any) -> bool:
    return info.type == "task"


@contextmanager
def _one_line_errors(spec: str) -> Iterator[None]:
    """What stands in the way of making a task, in one line; bugs in a task keep their traceback."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "?").partition(".")[0]
        raise EvalError(
            f"tasks={spec} needs the package {package}, which is not installed:"
            f" {python_command()} -m pip install {package}"
        ) from error
    except (AssertionError, ImportError) as error:
        # inspect_evals asserts that a package is there, and says how to install it
        if "install" not in str(error):
            raise
        raise EvalError(f"tasks={spec}: {one_line(error)}") from error
    except PrerequisiteError as error:
        text = Text.from_markup(str(error.message)).plain
        raise EvalError(f"tasks={spec}: {one_line(text)}") from error
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}"
        raise ConfigurationError(f"tasks={spec}: {where}: {error.msg}") from None
    except OSError as error:  # its data cannot be read or downloaded
        raise EvalError(f"tasks={spec}: {one_line(error, 300)}") from error
