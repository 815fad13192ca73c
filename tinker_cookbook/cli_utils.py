"""The command line of every program: `key=value` arguments, `config=FILE`, `--help`, short errors.

    if __name__ == "__main__":
        cli_utils.cli(main, CLI)

chz parses the arguments: `learning_rate=1e-4`, `data=JsonlChats data.path=x.jsonl` (a class by
name, then its fields), `...model_name=x` (every field of that name). `config=FILE` is a YAML file
with the same keys, nested or dotted, or the config.json of a run; the other arguments override it.
"""

from tinker_cookbook.training.run_directory import LogDirBehavior, check_log_dir
from tinker_cookbook.utils.command_help import help_text
from tinker_cookbook.utils.command_line import parse
from tinker_cookbook.utils.command_words import model_name_from_argv
from tinker_cookbook.utils.misc_utils import runs_path
from tinker_cookbook.utils.program import cli

__all__ = [
    "LogDirBehavior",
    "check_log_dir",
    "cli",
    "help_text",
    "model_name_from_argv",
    "parse",
    "runs_path",
]
