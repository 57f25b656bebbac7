"""Find the files that a JSON names in their folder. Does not import Detectron2."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from solo_d2.data.coco_json import log_once
from solo_d2.data.problems import Refusal
from solo_d2.utils.errors import shown


def leaves_folder(name: str, folder: str | Path) -> bool:
    """Return whether a path, relative to a folder or absolute, is outside the folder."""
    root = os.path.abspath(folder)
    path = os.path.abspath(os.path.join(root, name))
    return path != root and not path.startswith(os.path.join(root, ""))


def require_inside(name: str, folder: str | Path) -> None:
    """Raise Refusal for a name outside the folder, so that a JSON cannot read other files."""
    if leaves_folder(name, folder):
        reason = (
            f"'file_name' {shown(name)} is outside the image folder {folder}. Pass the folder that "
            "contains all images, or correct the name"
        )
        raise Refusal("image outside the folder", reason)


def spellings(name: str) -> Iterator[tuple[str, str]]:
    """Yield other spellings of a name, each with a description of what is unusual."""
    slashes = name.replace("\\", "/")
    if slashes != name:
        yield slashes, "with backslashes, read as slashes"
    decoded = unquote(slashes)
    if decoded != slashes:
        yield decoded, "with percent codes such as %20, which are decoded"


class ImageFolder:
    """Find the files that a JSON names, with one listing per folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = os.fspath(root)
        self._listings: dict[str, set[str]] = {}
        self._composed: dict[str, dict[str, str]] = {}
        # Names by themselves and by their stem, without regard to case, for each folder.
        self._similar: dict[str, dict[str, str]] = {}
        self._unusual: Counter[str] = Counter()

    def find(self, name: str) -> str | None:
        """Return the path of a file; None if there is no such file inside the folder.

        If the name does not exist, try slashes for backslashes, decoded percent codes, and other
        Unicode normalization forms.
        """
        if leaves_folder(name, self.root):
            return None
        path = os.path.join(self.root, name)
        folder, base = os.path.split(path)
        if base in self._listing(folder) or os.path.isfile(path):
            return path
        for spelling, what in ((name, "in another Unicode form"), *spellings(name)):
            if leaves_folder(spelling, self.root):
                continue
            folder, base = os.path.split(os.path.join(self.root, spelling))
            if folder not in self._composed:
                self._composed[folder] = {_compose(name): name for name in self._listing(folder)}
            found = self._composed[folder].get(_compose(base))
            if found is not None:
                self._unusual[what] += 1
                return os.path.join(folder, found)
        return None

    def hint(self, name: str) -> str:
        """Return a hint for a missing file, as the end of a message; "" without one."""
        name = name.replace("\\", "/")
        folder, base = os.path.split(os.path.join(self.root, name))
        if folder not in self._similar:
            names = self._listing(folder)
            by_stem = {os.path.splitext(other)[0].casefold(): other for other in names}
            self._similar[folder] = by_stem | {other.casefold(): other for other in names}
        for key in (base.casefold(), os.path.splitext(base)[0].casefold()):
            other = self._similar[folder].get(key)
            if other is not None:
                same = other.casefold() == base.casefold()
                what = "upper and lower case" if same else "the extension"
                return f". {shown(other)} exists: {what} must match"
        if base in self._listing(self.root):
            return f". {shown(base)} is directly in the folder: remove the folder from the names"
        return ""

    def say_unusual(self) -> None:
        """Log once per kind how unusual names were read."""
        for what, count in self._unusual.items():
            log_once(self.root, f"has files that the JSON names {what} ({count} times)")

    def _listing(self, folder: str) -> set[str]:
        if folder not in self._listings:
            self._listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        return self._listings[folder]


def _compose(name: str) -> str:
    return unicodedata.normalize("NFC", name)
