"""`tinker_cookbook.renderers.show` under the name that users know."""

from tinker_cookbook.cli_utils import cli
from tinker_cookbook.renderers.show import Config, main

__all__ = ["Config", "main"]

if __name__ == "__main__":
    cli(main, Config)
