"""Publish an exported directory on the hub, with its model card.

    python -m tinker_cookbook.weights.publish model_path=DIR repo_id=OWNER/NAME
    python -m tinker_cookbook.weights.publish model_path=DIR repo_id=OWNER/NAME dry_run=False

Without dry_run=False it uploads nothing: it prints the model card (README.md in the directory,
which you may edit) and the files. The repository is private unless private=False. The hub's token
is that of HF_TOKEN or of `hf auth login`.
"""

from __future__ import annotations

import chz

from tinker_cookbook.cli_utils import cli
from tinker_cookbook.weights.output_directory import file_size
from tinker_cookbook.weights.publishing import prepare_upload, send


@chz.chz
class Config:
    model_path: str = chz.field(doc="directory that tinker_cookbook.weights.export wrote")
    repo_id: str = chz.field(doc="repository on the hub, OWNER/NAME; made if it does not exist")
    dry_run: bool = chz.field(default=True, doc="only print what would be uploaded")
    private: bool = chz.field(default=True, doc="make a new repository private")
    commit_message: str | None = chz.field(
        default=None, doc="message of the upload (None: the directory's name)"
    )


def main(config: Config) -> None:
    upload = prepare_upload(config.model_path, config.repo_id)
    if config.dry_run:
        print(upload.card)
    for name, size in upload.files.items():
        print(f"{file_size(size):>12}  {name}")
    for warning in upload.warnings:
        print(f"warning: {warning}")
    total = file_size(sum(upload.files.values()))
    kind = "private" if config.private else "public"
    if config.dry_run:
        print(
            f"dry run: would upload {total} to the {kind} repository {upload.repo_id}; set"
            " dry_run=False to do it"
        )
        return
    url = send(upload, config.private, None, config.commit_message)
    print(f"published {total}: {url}")


if __name__ == "__main__":
    cli(main, Config)
