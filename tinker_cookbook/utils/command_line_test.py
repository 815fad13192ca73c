import enum
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import chz
import pytest

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.command_help import help_text
from tinker_cookbook.utils.command_line import (
    Request,
    Source,
    parameters,
    parse,
    read_request,
)
from tinker_cookbook.utils.command_types import alternatives, type_text


class Mode(enum.StrEnum):
    FAST = "fast"
    EXACT = "exact"


@chz.chz
class Data:
    """Base of the data sets."""


@chz.chz
class Jsonl(Data):
    path: str = chz.field(doc="File of conversations.")
    batch_size: int = chz.field(default=8, doc="Sequences in a step.")
    model_name: str = chz.field(default="nano")


@chz.chz
class Hub(Data):
    name: str = "no_robots"
    batch_size: int = 16


@chz.chz
class LoopConfig:
    learning_rate: float | None = chz.field(default=None, doc="Peak rate; None: by the model.")
    lr_schedule: Literal["linear", "cosine"] = chz.field(default="linear", doc="Shape of the rate.")
    data: Data = chz.field(
        default_factory=Hub, blueprint_unspecified=Hub, doc="Where conversations come from."
    )
    tags: list[str] = chz.field(default_factory=list)
    weights: dict[str, float] = chz.field(default_factory=dict)
    shuffle: bool = True
    model_name: str = "nano"


def _positive(config: object, name: str) -> None:
    if getattr(config, name) < 1:
        raise ConfigurationError(f"steps={getattr(config, name)} must be at least 1")


def _even(config: object, name: str) -> None:
    if getattr(config, name) % 2:
        raise ValueError(f"size={getattr(config, name)} is odd")


@chz.chz
class Config(LoopConfig):
    steps: int = chz.field(default=3, validator=_positive, doc="Optimizer steps.")
    size: int = chz.field(default=2, validator=_even)
    mode: Mode = Mode.FAST


@chz.chz
class Strict:
    needed: int = chz.field(doc="A key without a default.")
    reward: Callable[[str], float] | None = None


def error(*argv: str, cls: type = Config, aliases: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(cls, argv, aliases)
    text = str(caught.value)
    assert "\n" not in text
    return text


def yaml_file(tmp_path: Path, text: str) -> str:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return str(file)


# ---- words


def test_values_are_read_by_type() -> None:
    config = parse(
        Config,
        ["learning_rate=1e-4", "steps=7", "shuffle=False", "tags=a,b", "mode=exact", "weights.x=2"],
    )
    assert config.learning_rate == 1e-4 and config.steps == 7 and config.shuffle is False
    assert config.tags == ["a", "b"] and config.mode is Mode.EXACT and config.weights == {"x": 2.0}
    assert parse(Config, ["learning_rate=None"]).learning_rate is None


def test_a_class_is_chosen_by_name_and_keys_of_the_default_one_need_no_name() -> None:
    assert parse(Config, ["data=Jsonl", "data.path=a=b"]).data == Jsonl(path="a=b")
    assert parse(Config, ["data.batch_size=4"]).data == Hub(batch_size=4)


def test_three_dots_reach_every_level() -> None:
    config = parse(Config, ["data=Jsonl", "data.path=x", "...model_name=m"])
    assert config.model_name == "m" and config.data.model_name == "m"


def test_the_last_of_two_equal_words_counts() -> None:
    assert parse(Config, ["steps=1", "steps=5"]).steps == 5


def test_aliases_stand_for_longer_keys() -> None:
    aliases = {"d": "data"}
    assert parse(Config, ["d=Jsonl", "d.path=x"], aliases).data == Jsonl(path="x")
    assert error("d=Jsonl", aliases=aliases).startswith("missing d.path;")
    assert error("d=X", aliases=aliases) == "d='X': expected Jsonl or Hub"
    assert error("d.nam=x", aliases=aliases) == "unknown key 'd.nam'; did you mean 'd.name'?"
    assert "\n  d  " in help_text(Config, aliases=aliases)


def test_an_object_with_two_aliases_is_called_as_the_user_does() -> None:
    both = {"d": "data", "e": "data"}
    assert error("e=X", aliases=both) == "e='X': expected Jsonl or Hub"
    assert error("e=Jsonl", aliases=both).startswith("missing d.path;")
    assert error("d=Jsonl", "e.batch_size=2", aliases=both).startswith("missing e.path;")
    assert error("f=X", "e.nam=x", aliases=both).startswith("unknown key 'f'")
    assert error("e=Hub", "e.q=x", aliases=both) == "unknown key 'e.q'; did you mean 'e.name'?"
    assert error("e.nam=x", aliases=both) == "unknown key 'e.nam'; did you mean 'e.name'?"


def test_another_name_of_a_value_does_not_hide_it() -> None:
    names = {"number_of_steps": "steps", "d": "data"}
    assert parse(Config, ["number_of_steps=5"], names).steps == 5
    assert error("step=1", aliases=names) == "unknown key 'step'; did you mean 'steps'?"
    assert error("number_of_step=1", aliases=names) == (
        "unknown key 'number_of_step'; did you mean 'number_of_steps'?"
    )
    assert error("number_of_steps=x", aliases=names) == "number_of_steps='x': expected int"
    text = help_text(Config, aliases=names)
    assert "\n  steps  " in text and "\n  number_of_steps" not in text
    assert "other names: number_of_steps (steps)\n" in text
    assert "short names: d (data)\n" in text


@pytest.mark.parametrize("values", [(1, 2), (2, 2)])
def test_two_names_of_one_key_are_refused(values: tuple[int, int], tmp_path: Path) -> None:
    words = [f"steps={values[0]}", f"n={values[1]}"]
    said = f"{words[0]} and {words[1]} are two names of one key: give one"
    assert error(*words, aliases={"n": "steps"}) == said
    name = yaml_file(tmp_path, "\n".join(word.replace("=", ": ") for word in words))
    there = said.replace(" are", f" in {name} are")
    assert error(f"config={name}", aliases={"n": "steps"}) == there
    name = yaml_file(tmp_path, words[0].replace("=", ": "))
    assert parse(Config, [f"config={name}", "n=7"], {"n": "steps"}).steps == 7


class _Short(chz.factories.standard):
    names: ClassVar[dict[str, type]] = {"file": Jsonl, "online": Hub}

    def from_string(self, factory: str) -> Callable[..., object]:
        return self.names.get(factory) or super().from_string(factory)


@chz.chz
class Unchosen:
    data: Data | None = None
    named: Data | None = chz.field(default=None, meta_factory=_Short(annotation=Data | None))


def test_a_key_of_a_class_that_is_not_chosen_yet(tmp_path: Path) -> None:
    assert error("data.batch_size=3", cls=Unchosen) == (
        "data.batch_size=3: data= must name a class first, e.g. data=Hub data.batch_size=3"
    )
    assert error("d.name=x", cls=Unchosen, aliases={"e": "named", "d": "named"}) == (
        "d.name=x: d= must name a class first, e.g. d=online d.name=x"
    )
    name = yaml_file(tmp_path, "data: {path: x}")
    assert error(f"config={name}", cls=Unchosen).startswith(f"data.path=x in {name}: data= must")
    assert error("data.pth=x", cls=Unchosen).startswith("unknown key 'data.pth'; ")


def test_names_for_classes() -> None:
    assert parse(Unchosen, ["named=file", "named.path=x"]).named == Jsonl(path="x")
    assert (
        error("named=fil", cls=Unchosen)
        == "named='fil': expected file or online (did you mean file?)"
    )
    assert "[file, online]" in help_text(Unchosen)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such:X", "no module 'no_such' in the working directory or installed"),
        ("no_such.x:X", "no module 'no_such' in the working directory or installed"),
        ("json.no_such:X", "no module 'json.no_such' in the working directory or installed"),
        ("json:no_such", "module 'json' has no 'no_such'"),
        ("breaks_on_import:X", "module 'breaks_on_import' cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_name_in_a_module(
    value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaks_on_import.py").write_text("import no_such_either\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert error(f"data={value}", cls=Unchosen).startswith(f"data={value!r}: {message}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["learning_rate=abc"], "learning_rate='abc': expected float or None"),
        (["steps=1.5"], "steps='1.5': expected int"),
        (["lr_schedule=x"], "lr_schedule='x': expected linear or cosine"),
        (["mode=x"], "mode='x': expected fast or exact"),
        (["data=X"], "data='X': expected Jsonl or Hub"),
        (["data=Jsnl"], "data='Jsnl': expected Jsonl or Hub (did you mean Jsonl?)"),
        (
            ["data=Jsonl", "data.path=x", "data.batch_size=many"],
            "data.batch_size='many': expected int",
        ),
        (["...batch_size=many"], "data.batch_size='many': expected int"),
        (["learning_rat=1"], "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        (["data.nme=x"], "unknown key 'data.nme'; did you mean 'data.name'?"),
        (["batch_size=4"], "unknown key 'batch_size'; did you mean 'data.batch_size'?"),
        (["...zzz=4"], "unknown key '...zzz'; --help lists the keys"),
        (["data=Jsonl", "data.path=x", "data.name=y"], "unknown key 'data.name'; did you mean"),
        (["data=Jsonl"], "missing data.path; --help says what to give"),
        (["steps=0"], "steps=0 must be at least 1"),
        (["size=3"], "size=3 is odd"),
        (["words"], "'words' is not key=value; --help lists the keys"),
        (["=3"], "'=3' is not key=value; --help lists the keys"),
        (["--steps=3"], "'--steps=3': write steps=3 without hyphens"),
        (["tags.x=3"], "invalid literal for int"),
        (["config=a", "config=b"], "config= is given twice (a, b); give one"),
    ],
)
def test_errors_are_one_line_that_names_key_value_and_fix(argv: list[str], message: str) -> None:
    assert error(*argv).startswith(message)


def test_a_bug_in_a_constructor_keeps_its_type() -> None:
    def broken(config: object, name: str) -> None:
        raise TypeError("a bug")

    @chz.chz
    class Broken:
        x: int = chz.field(default=1, validator=broken)

    with pytest.raises(TypeError, match="a bug"):
        parse(Broken, [])


# ---- config=FILE


def test_a_file_may_be_nested_or_dotted_and_words_come_after_it(tmp_path: Path) -> None:
    name = yaml_file(
        tmp_path,
        """
        learning_rate: 1e-4      # a string to YAML 1.1
        steps: 5
        data: Jsonl
        data.path: a.jsonl
        tags: [x, "y, z"]
        weights: {a: 0.5, b: 2}
        shuffle: false
        """,
    )
    config = parse(Config, ["steps=6", f"config={name}"])
    assert config == Config(
        learning_rate=1e-4,
        steps=6,
        data=Jsonl(path="a.jsonl"),
        tags=["x", "y, z"],
        weights={"a": 0.5, "b": 2.0},
        shuffle=False,
    )


def test_nested_mappings_nulls_empty_lists_and_aliases(tmp_path: Path) -> None:
    name = yaml_file(tmp_path, "d: {batch_size: 4, name: no}\nlearning_rate: null\ntags: []\n")
    config = parse(Config, [f"config={name}", "tags=q"], {"d": "data"})
    assert config.data == Hub(batch_size=4, name="no") and config.learning_rate is None
    assert parse(Config, [f"config={name}"], {"d": "data"}).tags == []


def test_a_word_with_dots_overrides_the_file(tmp_path: Path) -> None:
    name = yaml_file(tmp_path, "model_name: a\n")
    assert parse(Config, [f"config={name}", "...model_name=b"]).model_name == "b"


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert parse(Config, [f"config={yaml_file(tmp_path, '# nothing')}"]) == Config()


def test_a_file_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml_file(tmp_path, "steps: 9")
    monkeypatch.chdir(tmp_path)
    assert parse(Config, ["config=c.yaml"]).steps == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "unknown key 'stepz' in {file}; did you mean 'steps'?"),
        ("data: {nam: x}", "unknown key 'data.nam' in {file}; did you mean 'data.name'?"),
        ("config: other.yaml", "unknown key 'config' in {file}"),
        ("steps: many", "steps='many' in {file}: expected int"),
        ("steps: 0", "steps=0 must be at least 1"),
        ("- a\n- b", "{file} must hold keys and values, but holds a list"),
        ("just text", "{file} must hold keys and values, but holds a str"),
        ("steps: 1\nsteps: 2", "{file}:2 is not YAML: key 'steps' twice"),
        ("data: {name: x}\ndata.name: y", "{file} gives 'data.name' twice"),
        ("steps: [1", "{file}:1 is not YAML: "),
        ("a: 1\n\tb: 2", "{file}:2 is not YAML: "),
    ],
)
def test_errors_in_a_file_name_the_file_and_the_key(
    tmp_path: Path, text: str, message: str
) -> None:
    name = yaml_file(tmp_path, text)
    assert error(f"config={name}").startswith(message.format(file=name))


def test_unreadable_files(tmp_path: Path) -> None:
    assert error(f"config={tmp_path}/no.yaml") == (
        f"config={tmp_path}/no.yaml cannot be read: No such file or directory"
    )
    assert error(f"config={tmp_path}").endswith("cannot be read: Is a directory")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    assert error(f"config={tmp_path}/c.yaml").endswith("cannot be read: not UTF-8 text")


# ---- help


def test_help_lists_every_key_with_type_default_and_meaning() -> None:
    lines = help_text(Config, docstring="Trains\nsomething.\n\nMore.", width=120).splitlines()
    assert lines[2] == "Trains something." and "More." not in lines
    assert sum(line.split()[:1] == ["learning_rate"] for line in lines) == 1
    row = next(line for line in lines if line.startswith("  learning_rate"))
    assert " ".join(row.split()) == "learning_rate float None Peak rate; None: by the model."
    row = next(line for line in lines if line.startswith("  mode "))
    assert " ".join(row.split()) == "mode choice fast [fast, exact]"
    row = next(line for line in lines if line.startswith("  data "))
    assert " ".join(row.split()) == "data class Hub Where conversations come from. [Jsonl, Hub]"
    assert "keys of data (Hub)" in lines
    assert all(len(line) <= 120 for line in lines)


def test_help_follows_the_class_that_was_chosen_and_marks_required_keys() -> None:
    text = help_text(Config, ["data=Jsonl"], width=100)
    assert "keys of data (Jsonl)" in text and "data.name" not in text
    row = next(line for line in text.splitlines() if "data.path" in line)
    assert row.split()[:3] == ["data.path", "str", "required"]
    row = next(line for line in help_text(Strict).splitlines() if "needed" in line)
    assert row.split()[:3] == ["needed", "int", "required"]


DOCSTRING = """Trains something.

    python -m recipes.x                  nano
    ./scripts/run recipes.x data=Jsonl   a file
    python -m recipes.x data=Hub

The command above is run by hand."""


def test_help_explains_the_first_keys_and_lists_the_others() -> None:
    lines = help_text(Config, [], {"d": "data"}, ["d", "mode"], DOCSTRING, 120).splitlines()
    start = lines.index("examples")
    assert lines[start + 1 : start + 4] == [
        "  python -m recipes.x                  nano",
        "  ./scripts/run recipes.x data=Jsonl   a file",
        "",
    ]
    start = lines.index("keys to set first")
    names = [line.split()[0] for line in lines[start + 1 :] if line[:3].strip()]
    assert names[:3] == ["d", "mode", "other"]
    others = " ".join(lines[start + 4 :])
    assert " learning_rate " in others and " mode=" not in others
    assert "steps=3 " in others and "Peak rate" not in others


def test_help_all_explains_every_key() -> None:
    everything = help_text(Config, ["all"], None, ["data"], DOCSTRING, 120)
    assert everything == help_text(Config, [], None, [], DOCSTRING, 120)
    assert "Peak rate" in everything


def test_help_explains_the_keys_of_an_object_that_the_command_line_chooses() -> None:
    text = help_text(Config, ["data=Jsonl"], None, ["mode"], "", 120)
    assert "keys of data (Jsonl)" in text
    assert "keys of data" not in help_text(Config, [], None, ["mode"], "", 120)


def test_help_refuses_what_parse_refuses() -> None:
    with pytest.raises(ConfigurationError, match="unknown key 'stepz'"):
        help_text(Config, ["stepz=1"])
    with pytest.raises(ConfigurationError, match="data='X': expected"):
        help_text(Config, ["data=X"])


def test_help_wraps_to_the_width() -> None:
    lines = help_text(Config, width=80).splitlines()
    assert max(len(line) for line in lines) <= 80


def test_our_list_of_keys_is_the_one_of_chz() -> None:
    request = Request(Config, [Source("", {"data": "Jsonl"})], {})
    blueprint = request.blueprint()
    rows = blueprint.get_help().partition("Arguments:")[2].splitlines()
    assert list(parameters(blueprint)) == [row.split()[0] for row in rows if row.strip()]


def test_type_text() -> None:
    assert type_text(list[str] | None) == "list[str] | None"
    assert type_text(tuple[int, ...]) == "tuple[int, ...]"
    assert type_text(Callable[[str], float]) == "module:function"


def test_alternatives() -> None:
    text = type_text(tuple[Literal["a", "b"], ...] | None)
    assert alternatives(text) == ["tuple[a | b, ...]", "None"]
    assert alternatives(type_text(Literal["a", "b"])) == ["a", "b"]


def test_help_words_are_no_keys() -> None:
    assert read_request(Config, ["--help", "-h"]).sources == [Source("", {})]


def test_help_names_the_keys_of_each_class_while_none_is_chosen() -> None:
    lines = help_text(Unchosen, aliases={"d": "data"}, width=90).splitlines()
    start = lines.index("keys of d, by class (d=Jsonl --help says what they mean)")
    assert [" ".join(line.split()) for line in lines[start + 1 : start + 4]] == [
        "d=Jsonl d.path, d.model_name",
        "d=Hub d.name",
        "all of them d.batch_size",
    ]
    assert "  named=online                   named.name" in lines
    chosen = help_text(Unchosen, ["d=Jsonl"], {"d": "data"}, width=90)
    assert "keys of d (Jsonl)" in chosen and "keys of d, by class" not in chosen
    assert "by class" not in help_text(Config) and "by class" not in help_text(Strict)
