"""Download the files of a checkpoint into a new directory.

    python -m tinker_cookbook.weights.download tinker_path=RUN output_dir=DIR
    python -m tinker_cookbook.weights.download tinker_path=tinker://... output_dir=DIR base_url=URL

A checkpoint of this machine is copied, one of a server is fetched. The files are a PEFT adapter,
and the optimizer state if the checkpoint has one. For an adapter or a model to load elsewhere, use
tinker_cookbook.weights.export.

Programs call `tinker_cookbook.weights.download`, the function; nothing imports this module.
"""

from __future__ import annotations

import chz

from tinker_cookbook.cli_utils import cli
from tinker_cookbook.weights.checkpoint_files import download


@chz.chz
class Config:
    tinker_path: str = chz.field(doc="tinker:// path, or a run directory (its last checkpoint)")
    output_dir: str = chz.field(doc="new directory for the files")
    base_url: str | None = chz.field(
        default=None, doc="Tinker API server URL (None: the run's, or the store of this machine)"
    )


def main(config: Config) -> None:
    directory = download(
        tinker_path=config.tinker_path, output_dir=config.output_dir, base_url=config.base_url
    )
    print(f"downloaded to {directory}")


if __name__ == "__main__":
    cli(main, Config)
