"""The folder that holds one run, and only that."""

import os
import pathlib
import shutil

from experiments import configuration

CONFIG_FILE = "config.json"


class RunFolderError(ValueError):
    """A run folder that holds something else; the message says the way out."""


def open_folder(folder: pathlib.Path, config: str, overwrite: bool) -> None:
    """Makes a run folder ready: a new one, an emptied one, or that of the same run.

    Args:
      folder: the run folder.
      config: the run's config, from `configuration.to_json`.
      overwrite: delete the run that the folder holds.

    Raises:
      RunFolderError: the folder holds a run of another config, or something else.
      OSError: it cannot be written.
    """
    path = folder / CONFIG_FILE
    if overwrite and path.is_file():
        shutil.rmtree(folder)
    if path.is_file():
        changed = configuration.differences(path.read_text(), config)
        if changed:
            raise RunFolderError(
                f"{folder} holds a run of another config:\n  "
                + "\n  ".join(changed)
                + "\nPass another --workdir, or --overwrite to delete that run."
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise RunFolderError(
            f"{folder} is not empty and holds no run; pass another --workdir."
        )
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{CONFIG_FILE}"
    temporary.write_text(config)
    os.replace(temporary, path)
