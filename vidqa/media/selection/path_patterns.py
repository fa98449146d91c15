"""Which paths `--exclude`, `--include` and `.vidqaignore` files exclude, in the syntax of .gitignore.

For a file or folder below a searched root, the first of these rules that applies decides:

1. It matches `--include`, or a folder above it does: it is taken.
2. A folder above it is excluded: so is it, whatever else matches.
3. The last `--exclude` that matches. A pattern with `!` takes the file back.
4. The last line that matches in the `.vidqaignore` of its folder, then in those of the folders above, up to the root.
5. If there are patterns to include and none to exclude, other files are excluded.

An excluded folder is not entered, unless a pattern to include names something in it, such as `drafts/final.mp4`.
Patterns of the command line are relative to the root, those of a `.vidqaignore` to its folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from vidqa.common.display import display_path
from vidqa.errors import UsageError

IGNORE_FILE = ".vidqaignore"
#: Patterns to exclude that mean "everything else" next to patterns to include, as in `--include '*.mp4' --exclude '*'`.
_EVERYTHING = frozenset({"*", "**", "**/*"})


@dataclass(frozen=True)
class Exclusion:
    """Why a file or folder is excluded."""

    by: str  # the option, or `.vidqaignore`
    rule: str  # with the pattern: `--exclude drafts/`, or `/archive/.vidqaignore:3: drafts/`


class PathPatterns:
    """Decides about the files and folders of a scan. Reads each `.vidqaignore` once.

    Args:
        exclude: patterns of files and folders.
        include: patterns of files and folders that have precedence.

    Raises:
        UsageError: lists all invalid patterns.
    """

    def __init__(self, exclude: Sequence[str] = (), include: Sequence[str] = ()) -> None:
        problems: list[str] = []
        self._only_included = bool(include) and _EVERYTHING.issuperset(exclude)
        exclude = [] if self._only_included else exclude
        self._exclude = _Rules([(p, f"--exclude {p}") for p in exclude], problems, in_file=False)
        self._include = _Rules([(p, f"--include {p}") for p in include], problems, in_file=False)
        problems += [f"--include {p}: `!` has no meaning here" for p in include if p.startswith("!")]
        if problems:
            raise UsageError("\n".join(problems), hint="examples: drafts/, '*.tmp.mp4', /2019/**/raw")
        self._paths_to_include = [parts for p in include if (parts := _fixed_parts(p))]
        self._include_anywhere = len(self._paths_to_include) < len(include)
        self._rules_of_folder: dict[tuple[str, str], list[tuple[str, _Rules]]] = {}
        self._folders: dict[tuple[str, str], Exclusion | None] = {}

    def exclusion(self, path: str, root: str, *, is_folder: bool = False) -> Exclusion | None:
        """Return why a file or folder is excluded, or None. It need not exist.

        Args:
            path: absolute path below the root.
            root: absolute path of the searched folder, or of the folder before the first wildcard of a glob.
            is_folder: whether it is a folder.

        Raises:
            UsageError: a `.vidqaignore` that applies cannot be read, or has invalid patterns.
        """
        if is_folder and (path, root) in self._folders:
            return self._folders[path, root]
        above = os.path.dirname(path)
        parent = None if path == root or above == path else self.exclusion(above, root, is_folder=True)
        found = self._decide(path, root, parent, is_folder=is_folder)
        if is_folder:
            self._folders[path, root] = found
        return found

    def may_contain_included(self, folder: str, root: str) -> bool:
        """Return whether a pattern to include names something in an excluded folder.

        Args:
            folder: absolute path below the root.
            root: as for `exclusion`.
        """
        names = _relative(folder, root).split("/")
        return any(_leads_to(names, parts) for parts in self._paths_to_include)

    def _decide(self, path: str, root: str, parent: Exclusion | None, *, is_folder: bool) -> Exclusion | None:
        if path == root:
            return None
        name = _relative(path, root) + ("/" if is_folder else "")
        if self._include.match(name) is not None:
            return None
        if parent is not None:
            return parent
        if (found := self._exclude.match(name)) is not None:
            return Exclusion("--exclude", found.source) if found.excludes else None
        for folder, rules in self._rules_for(os.path.dirname(path), root):
            if (found := rules.match(_relative(path, folder) + ("/" if is_folder else ""))) is not None:
                if found.excludes:
                    return Exclusion(IGNORE_FILE, found.source)
                break
        if self._only_included and not (
            is_folder and (self._include_anywhere or self.may_contain_included(path, root))
        ):
            return Exclusion("--include", "no --include matches")
        return None

    def _rules_for(self, folder: str, root: str) -> list[tuple[str, _Rules]]:
        """Return the folders with a `.vidqaignore` from this one up to the root, and their rules."""
        if (folder, root) not in self._rules_of_folder:
            above = os.path.dirname(folder)
            rules = [] if folder == root or above == folder else self._rules_for(above, root)
            own = _read_ignore_file(os.path.join(folder, IGNORE_FILE))
            self._rules_of_folder[folder, root] = rules if own is None else [(folder, own), *rules]
        return self._rules_of_folder[folder, root]


@dataclass(frozen=True)
class _Match:
    excludes: bool
    source: str


class _Rules:
    """Compiled patterns; of those that match, the last one decides.

    Args:
        patterns: each with its source, for messages.
        problems: receives a sentence for each invalid pattern.
        in_file: whether a line may be empty or a comment.
    """

    def __init__(self, patterns: Sequence[tuple[str, str]], problems: list[str], *, in_file: bool) -> None:
        self._sources: list[str] = []
        compiled = []
        for text, source in patterns:
            if in_file and (not text.strip() or text.startswith("#")):
                continue
            try:
                compiled.append(_compile(text, in_file=in_file))
            except ValueError as error:
                problems.append(f"{display_path(source)}: {error}")
            self._sources.append(source)
        self._spec = GitIgnoreSpec(compiled, backend="simple") if compiled else None

    def match(self, name: str) -> _Match | None:
        """Return the decision about a path with `/` between its parts and, for a folder, at its end."""
        if self._spec is None:
            return None
        found = self._spec.check_file(name.replace("\n", " "))  # `.` of a regular expression matches no line break
        if found.include is None or found.index is None:
            return None
        return _Match(found.include, self._sources[found.index])


def _compile(text: str, *, in_file: bool) -> GitIgnoreSpecPattern:
    """Compile one pattern. What git would silently ignore is an error here.

    Raises:
        ValueError: the pattern is invalid, or can never match.
    """
    parts = text.strip().removeprefix("!").split("/")
    if not text.strip() or "\0" in text:
        raise ValueError("the pattern is empty" if not text.strip() else "the pattern contains a null byte")
    if "." in parts or ".." in parts:
        raise ValueError("`.` and `..` match nothing; a pattern is relative to the searched folder, such as drafts/")
    if "[:" in text:
        raise ValueError("classes such as [:digit:] are not supported; use a range, such as [0-9]")
    try:
        pattern = GitIgnoreSpecPattern(text if in_file or not text.startswith("#") else f"\\{text}")
    except (ValueError, re.error) as error:
        raise ValueError("not a valid pattern: check its brackets and backslashes") from error
    if pattern.include is None:
        raise ValueError(
            "not a valid pattern: a bracket is not closed" if "[" in text else "the pattern matches nothing"
        )
    return pattern


def _read_ignore_file(path: str) -> _Rules | None:
    """Return the rules of a `.vidqaignore`; None if there is no such file."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        if not os.path.lexists(path):  # for example below a folder without permission, where it does not matter
            return None
        hint = "make it readable: without it, excluded files would be processed"
        raise UsageError(f"{display_path(path)}: {error.strerror or error}", hint=hint) from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in content:
        raise UsageError(
            f"{display_path(path)}: not a text file in UTF-8", hint="save it as UTF-8, one pattern per line"
        )
    lines = [os.fsdecode(line.removesuffix(b"\r")) for line in content.split(b"\n")]
    problems: list[str] = []
    sources = [(line, f"{path}:{number}: {line.strip()}") for number, line in enumerate(lines, start=1)]
    rules = _Rules(sources, problems, in_file=True)
    if problems:
        raise UsageError("\n".join(problems), hint="correct or remove these lines; the syntax is that of .gitignore")
    return rules


def _relative(path: str, folder: str) -> str:
    name = path[len(folder.rstrip(os.sep)) + 1 :]
    return name if os.sep == "/" else name.replace(os.sep, "/")


def _fixed_parts(pattern: str) -> list[str]:
    """Return the parts of a pattern that names a path from the root; an empty list if it matches at any depth."""
    parts = pattern.strip().strip("/").split("/")
    anchored = "/" in pattern.strip().rstrip("/") and parts[0] != "**"
    return parts if anchored else []


def _leads_to(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Return whether a folder is on the way to what a pattern names."""
    for name, part in zip(names, parts, strict=False):
        if part == "**":
            return True
        if "\\" not in part and not fnmatchcase(name, part):
            return False
    return True
