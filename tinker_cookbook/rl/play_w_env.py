"""The Tinker cookbook's path of `tinker_cookbook.rl.play`."""

from tinker_cookbook.cli_utils import cli
from tinker_cookbook.rl.play import Config, ManualPolicy, main, play_env

__all__ = ["Config", "ManualPolicy", "main", "play_env"]

if __name__ == "__main__":
    cli(main, Config)
