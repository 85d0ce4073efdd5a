"""Whether a folder may be used for results, and the settings of the results in it.

A results folder has a manifest with the settings and every start of a run, and a record of every
finished image. From the first record on, a run with other settings is refused.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovss_refine.folders.files import (
    check_replaceable,
    clear_leftovers,
    make_folder,
    read_json,
    write_text,
)
from ovss_refine.folders.manifest import environment, plain
from ovss_refine.folders.paths import local_path
from ovss_refine.folders.records import PATTERN, Records, files_of, rank_of

MANIFEST = "manifest.json"
ALL_RECORDS = PATTERN.format(rank="*")


class ResultsFolder:
    """The results folder of one command with one set of settings, locked against other runs.

    Args:
        path: the folder; created if it is missing.
        settings: everything that the results depend on.
        started: what the manifest notes about this start besides its environment.
        manifest: file name of the manifest.
        overwrite: discard results of other settings, and accept a folder with other files; None:
            do neither, and suggest no flag for it.

    Raises:
        FileExistsError: if `path` is a file, or a folder with other files.
        ValueError: if the results have other settings, with a list of the differences; or if the
            manifest is damaged.
        OSError: if the folder cannot be written, or another run is writing into it.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        started: Mapping[str, Any] | None = None,
        *,
        manifest: str = MANIFEST,
        overwrite: bool | None = None,
    ) -> None:
        """Check and lock the folder, and note this start in the manifest."""
        check_results(path, manifest, overwrite=overwrite)
        self.path, self._manifest, self._overwrite = path, path / manifest, overwrite
        self._created = [one for one in (path, *path.parents) if not one.exists()]
        make_folder(path)
        self.records = Records(path)  # those of this process, open for appending
        try:
            clear_leftovers(path, deep=True)
            self._start(plain(settings), environment() | dict(started or {}))
        except BaseException:
            self.records.close()
            raise

    def has_results(self) -> bool:
        """Whether any process has finished an image."""
        return any(path.stat().st_size for path in self.path.glob(ALL_RECORDS))

    def close(self) -> None:
        """Unlock the folder; remove what this run created if there are no results."""
        own = {self._manifest.name, self.records.path.name}
        try:
            if not self.has_results() and set(_visible(self.path)) <= own:
                self._manifest.unlink()
                self.records.path.unlink()
        finally:
            self.records.close()
        with contextlib.suppress(OSError):  # a folder with files remains
            for folder in self._created:
                folder.rmdir()

    def _start(self, settings: dict[str, Any], started: dict[str, Any]) -> None:
        """Compare the settings with those of the results; add this start to the manifest."""
        before, starts = _read(self._manifest, self._overwrite)
        if changed := differences(before, settings):
            if self.has_results() and not self._overwrite:
                raise ValueError(
                    f"`out` must be a folder of the same settings; in `{self.path}` {changed}. "
                    f"Take another folder{_hint(self._overwrite, ', or pass --overwrite')}."
                )
            self._clear_records()
            starts = []
        content = {"settings": settings, "starts": [*starts, plain(started)]}
        write_text(self._manifest, json.dumps(content, indent=1) + "\n")

    def _clear_records(self) -> None:
        """Discard the records of all processes; raises BlockingIOError if one is still running."""
        self.records.clear()
        for path in files_of(self.path):
            if path != self.records.path:
                with contextlib.closing(Records(self.path, rank_of(path))) as other:
                    other.clear()


def count_starts(path: Path, manifest: str = MANIFEST) -> int:
    """Count the starts of the runs in a results folder, those of other settings left out."""
    return len(_read(path / manifest, None)[1])


def check_results(path: Path, manifest: str = MANIFEST, *, overwrite: bool | None = None) -> None:
    """Check that a `ResultsFolder` can be opened, apart from its settings; create nothing.

    Raises:
        FileExistsError: if `path` is a file, or a folder with other files.
        ValueError: if the manifest is damaged.
        OSError: if the folder cannot be written.
    """
    check_writable(path)
    if overwrite or not path.exists():
        return
    if (path / manifest).is_file():
        _read(path / manifest, overwrite)
        return
    # A run that was killed early leaves nothing but an empty file of records.
    begun = {file.name for file in path.glob(ALL_RECORDS) if not file.stat().st_size}
    if others := [name for name in _visible(path) if name not in begun]:
        among = _hint(overwrite, ", or pass --overwrite to write among its files")
        raise FileExistsError(
            f"`out` must be a new or empty folder, or one with `{manifest}`; `{path}` has "
            f"{others[0]!r}. Take another folder{among}."
        )


def prepare_folder(
    path: Path, files: Sequence[Path], *, overwrite: bool, name: str = "out"
) -> None:
    """Create a folder for `files` that a command writes once, without settings or records.

    Args:
        path: the folder.
        files: in it, or in its sub-folders.
        overwrite: replace files that exist.
        name: what messages call the folder.

    Raises:
        FileExistsError: if a file exists and `overwrite` is not set, or if `path` is a file.
        OSError: if the folder cannot be written.
    """
    check_writable(path, name)
    existing = [file for file in files if os.path.lexists(file)]
    for file in existing:
        check_replaceable(file)
    if existing and not overwrite:
        raise FileExistsError(
            f"`{existing[0]}` exists ({len(existing)} of {len(files)} results do); pass "
            "--overwrite to replace them, or take another folder."
        )
    for folder in {path, *(file.parent for file in files)}:
        make_folder(folder)
        clear_leftovers(folder)


def check_writable(path: Path, name: str = "out", which: str = "") -> None:
    """Check that files can be written into a folder that may not exist yet; create nothing.

    Args:
        path: the folder.
        name: the argument, for messages.
        which: what comes before its name there.

    Raises:
        ValueError: if it is a URL, which would become a folder.
        FileExistsError: if the folder, or one above it, is a file.
        OSError: if nothing can be written there.
    """
    local_path(name, path)
    try:
        existing = next(one for one in (path, *path.parents) if _is_there(one))
        if not existing.is_dir():
            raise FileExistsError(f"{which}`{name}` must be a folder; `{existing}` is a file.")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except FileExistsError:
        raise
    except OSError as err:
        raise OSError(
            f"{which}`{name}` must be a folder that can be written; `{path}`: {err.strerror}."
        ) from err


def _read(manifest: Path, overwrite: bool | None) -> tuple[dict[str, Any], list[Any]]:
    """Read the settings and the starts; both are empty if there is no manifest."""
    try:
        content = read_json(manifest)
        # Older versions of `segment` kept the last start only.
        starts = content["starts"] if "starts" in content else [content["started"]]
        return dict(content["settings"]), list(starts)
    except FileNotFoundError:
        return {}, []
    except (ValueError, KeyError, TypeError):
        if overwrite:
            return {}, []
        raise ValueError(
            f"`{manifest}` must be the manifest of a results folder; it is damaged. Take another "
            f"folder{_hint(overwrite, ', or pass --overwrite')}."
        ) from None


def _hint(overwrite: bool | None, text: str) -> str:
    return "" if overwrite is None else text


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """List the settings that differ, or return ""; an absent setting equals None."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(
        f"{key} was {_short(before.get(key))}, is {_short(now.get(key))}" for key in keys
    )


def _short(value: object) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_there(path: Path) -> bool:
    """Whether anything is at `path`, a broken link included; raises OSError if it cannot be."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
