"""Find the image files that a list names, however it writes their paths."""

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath

from stages.imagery.image_decoding import IMAGE_SUFFIXES
from stages.imagery.untrusted_text import posix_path, valid_utf8

MISSING = "listed file is missing"
OUTSIDE = "file_name outside the folder"
ABSOLUTE = "absolute file_name that is not in the folder: write it relative to the list"
AMBIGUOUS = "listed file is one of several of that name"
NAME_FAULTS = {MISSING, OUTSIDE, ABSOLUTE, AMBIGUOUS}


class ListedImages:
    """The image files of a source, by path and by name."""

    def __init__(self, files: list[Path], root: Path) -> None:
        self.root = root
        self._by_path: dict[str, list[Path]] = defaultdict(list)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            if file.suffix.lower() in IMAGE_SUFFIXES:
                path = valid_utf8(file.relative_to(root).as_posix()).lower()
                self._by_path[path].append(file)
                self._by_name[PurePosixPath(path).name].append(file)

    def find(self, folder: Path, file_name: str) -> tuple[Path | None, str | None]:
        """The file that a list in `folder` names, or None and the reason.

        Backslashes, and another case or Unicode form of the letters, are allowed.
        """
        if os.path.isabs(file_name) and Path(file_name).is_relative_to(self.root.absolute()):
            folder, file_name = self.root, os.path.relpath(file_name, self.root)
        path = posix_path(file_name)
        if path.startswith("/") or path[1:2] == ":":
            return None, ABSOLUTE
        if ".." in PurePosixPath(path).parts:
            return None, OUTSIDE
        for file in (folder / file_name, folder / valid_utf8(file_name)):
            if os.path.isfile(file):
                return file, None
        key = valid_utf8((folder / path).relative_to(self.root).as_posix()).lower()
        return _only(self._by_path.get(key, []))

    def find_name(
        self, folder: Path, file_name: str, class_name: str | None
    ) -> tuple[Path | None, str | None]:
        """Like `find`, but the image may be in any folder: it is looked for by its name.

        Of several, one below `folder` is preferred, then one in a folder named `class_name`.
        """
        file, reason = self.find(folder, file_name)
        if file or reason in (OUTSIDE, ABSOLUTE):
            return file, reason
        files = self._by_name.get(PurePosixPath(posix_path(file_name).lower()).name, [])
        files = [file for file in files if file.is_relative_to(folder)] or files
        if class_name is not None:
            folder_name = class_name.lower()
            files = [file for file in files if file.parent.name.lower() == folder_name] or files
        return _only(files)


def _only(files: list[Path]) -> tuple[Path | None, str | None]:
    """The file, if there is exactly one."""
    if len(files) == 1 and os.path.isfile(files[0]):
        return files[0], None
    return None, AMBIGUOUS if len(files) > 1 else MISSING
