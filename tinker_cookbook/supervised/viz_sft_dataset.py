"""`tinker_cookbook.renderers.show` under the module name of the Tinker cookbook."""

from tinker_cookbook.cli_utils import cli
from tinker_cookbook.renderers.show import Config, main

__all__ = ["Config", "main"]

if __name__ == "__main__":
    cli(main, Config)
