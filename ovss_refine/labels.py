"""Class names and their prompts, as people write them in a text, a list or a file.

    cat, dog/puppy, background: wall/floor/sky

is three classes: "cat", "dog" with two prompts, and "background" with three. This module imports
neither torch nor numpy, because the command line reads labels before it loads them.
"""

import codecs
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovss_refine.folders.paths import local_path

SYNONYM, NAMED = "/", ":"
NUMBERED = re.compile(r"\s*(\d{1,6})[\s,;.)]+\S")  # as a row of a table begins
# Byte-order marks. That of UTF-32 begins with that of UTF-16, so it comes first.
MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
MAX_BYTES = 1 << 24  # of a file of names or ids: some million lines
GRAMMAR = '"cat, dog/puppy, background: wall/floor/sky"'


@dataclass(frozen=True, slots=True)
class Labels:
    """The classes to look for, and the prompts of each.

    Iterating gives one text for each class, as `prompts` does; this is what a source of logits
    takes as `classes`. White space is collapsed. Two classes may share a prompt, as in published
    lists; the functions that read labels warn about it.

    Attributes:
        names: M names, distinct without regard to case.
        synonyms: M tuples of one prompt or more, distinct within a class without regard to case.

    Raises:
        TypeError: if a name or a prompt is not a string.
        ValueError: if there is no class, a name or a prompt is empty, occurs twice or cannot be
            encoded, a prompt contains "/" or a colon, or the numbers of names and of rows of
            prompts differ.

    Example:
        >>> labels = Labels(("dog", "background"), (("dog", "puppy"), ("wall",)))
        >>> list(labels), str(labels)
        (['dog/puppy', 'wall'], 'dog/puppy, background: wall')
    """

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        """Check everything, and collapse white space."""
        if wrong := [row for row in self.synonyms if isinstance(row, str)]:
            raise TypeError(f"`synonyms` must be tuples of prompts; got {wrong[0]!r}.")
        names = _tidy(self.names)
        synonyms = tuple(_tidy(row) for row in self.synonyms)
        if not names or len(names) != len(synonyms):
            raise ValueError(
                "classes must be at least one, with prompts for each; got "
                f"{len(names)} names and {len(synonyms)} rows of prompts."
            )
        for name, row in zip(names, synonyms, strict=True):
            _check_class(name, row)
        if twice := _repeated(names):
            raise ValueError(f"classes must have no name twice; got {twice!r} twice.")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "synonyms", synonyms)

    @property
    def prompts(self) -> tuple[str, ...]:
        """M texts, one for each class: its prompts, separated by "/"."""
        return tuple(SYNONYM.join(row) for row in self.synonyms)

    @property
    def all_prompts(self) -> tuple[str, ...]:
        """The K prompts, class by class."""
        return tuple(prompt for row in self.synonyms for prompt in row)

    @property
    def prompt_index(self) -> tuple[int, ...]:
        """The class of each of the K prompts."""
        return tuple(c for c, row in enumerate(self.synonyms) for _ in row)

    def __len__(self) -> int:
        """Number of classes, M."""
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        """Iterate over `prompts`."""
        return iter(self.prompts)

    def __str__(self) -> str:
        """Write the labels in the form that `parse_labels` reads."""
        rows = zip(self.names, self.synonyms, self.prompts, strict=True)
        return ", ".join(p if row[0] == name else f"{name}: {p}" for name, row, p in rows)


LabelsLike = Labels | str | Path | Iterable[str]


def as_labels(labels: LabelsLike) -> Labels:
    """Read labels in any of the accepted forms.

    Args:
        labels: one text for `parse_labels`; a list with a text for each class, such as "cat",
            "dog/puppy" or "background: wall/floor" (a comma there is part of the text); a `Path`
            for `read_labels`; or `Labels`, returned as they are.

    Raises:
        TypeError: if a label is not a string.
        ValueError: as `Labels` does, or if a text has two colons.
        FileNotFoundError: if there is no such file.

    Warns:
        UserWarning: if classes share a prompt.

    Example:
        >>> as_labels(["cat", "dog/puppy"]).all_prompts
        ('cat', 'dog', 'puppy')
    """
    if isinstance(labels, Labels):
        return labels
    if isinstance(labels, str):
        return parse_labels(labels)
    if isinstance(labels, Path):
        return read_labels(labels)
    if isinstance(labels, (set, frozenset)) or not isinstance(labels, Iterable):
        raise TypeError(
            f"classes must be a text such as {GRAMMAR} or a list; got {type(labels).__name__}."
        )
    return _labels(labels)


def parse_labels(text: str) -> Labels:
    """Read one text: classes separated by commas or line breaks.

    Args:
        text: such as "cat, dog/puppy, background: wall/floor/sky". A class is written as its
            prompts, separated by "/", and is named after the first; or as a name, a colon and the
            prompts.

    Raises:
        ValueError: as `as_labels` does, and warns as that does.

    Example:
        >>> parse_labels("cat, dog/puppy, background: wall/floor").names
        ('cat', 'dog', 'background')
    """
    return _labels(text.strip().replace("\n", ",").split(","))


def read_labels(path: str | Path) -> Labels:
    """Read a file of class names: one class a line, in order.

    A line has the form of a class in `parse_labels`, but "," and ";" separate prompts too, so that
    the files published with SCLIP, ProxyCLIP and their descendants (`cls_*.txt`) can be read
    unchanged. A file of a single line may not contain "," or ";": they could separate classes.

    Args:
        path: a UTF-8 text file, with or without a byte-order mark. Blank lines at its end are
            ignored.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8, a line is blank, a single line contains "," or ";", the
            lines are rows of a table, and as `as_labels` does, which also describes the warning;
            the message names the file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "classes.txt")
        >>> _ = path.write_text(chr(10).join(["cat", "dog, puppy"]))
        >>> read_labels(path).prompts
        ('cat', 'dog/puppy')
    """
    path = local_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` must be an existing file of class names, one a line.")
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"`{path}` must have a class on every line; line {number} is blank.")
    if len(lines) == 1 and any(mark in lines[0] for mark in ",;"):
        raise ValueError(
            f"`{path}` must have one class a line; got one line with ',' or ';', which may "
            "separate classes or synonyms. Write each class on a line of its own."
        )
    if len(lines) > 1 and _is_table(lines):
        raise ValueError(
            f"`{path}` must have the names of a class on each line; got {lines[-1]!r}, like a row "
            "of a table. Remove numbers, other columns and headings."
        )
    try:
        return _labels([re.sub("[,;]", SYNONYM, line) for line in lines], f"`{path}`: ")
    except ValueError as error:
        raise ValueError(f"`{path}`: {error}") from None


def _is_table(lines: Sequence[str]) -> bool:
    """Whether lines have columns, or are numbered from 0 or 1, perhaps under a heading."""
    found = [int(row[1]) for line in lines if (row := NUMBERED.match(line))]
    counted = any(found == [*range(start, start + len(found))] for start in (0, 1))
    return "\t" in "".join(lines) or (counted and len(found) in {len(lines), len(lines) - 1} - {0})


def read_lines(path: Path) -> list[str]:
    """Read the lines of a file without blank lines at its end.

    Raises:
        ValueError: unless it is UTF-8 of at most `MAX_BYTES`.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"`{path}` must have at most {MAX_BYTES:,} bytes of text; got more.")
    try:
        text = data.decode().replace("\ufeff", "")  # also between files that were joined
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a byte-order mark is valid UTF-8, with zeros in it
        known = [name for name, marks in MARKS.items() if data.startswith(marks)]
        got = known[0] if known else "another encoding"
        raise ValueError(f"`{path}` must be UTF-8 text; got {got}. Save it as UTF-8.")
    return text.rstrip().splitlines()


def _labels(texts: Iterable[str], where: str = "") -> Labels:
    rows = [_class(text) for text in texts]
    labels = Labels(tuple(name for name, _ in rows), tuple(prompts for _, prompts in rows))
    if shared := _shared(labels):
        warnings.warn(
            f"{where}some prompts belong to several classes, which a model cannot tell apart by "
            f"them: {shared}.",
            stacklevel=3,
        )
    return labels


def _class(text: str) -> tuple[str, tuple[str, ...]]:
    """Split a class into its name and its prompts."""
    if not isinstance(text, str):
        raise TypeError(f"classes must be strings; got {text!r}.")
    name, colon, prompts = text.partition(NAMED)
    if NAMED in prompts:
        raise ValueError(f"classes must have at most one colon; got {text.strip()!r}.")
    row = tuple((prompts if colon else text).split(SYNONYM))
    return (name if colon else row[0]), row


def _shared(labels: Labels) -> str:
    """List the prompts of several classes, with their classes; "" if there are none."""
    classes: dict[str, list[str]] = {}
    for name, row in zip(labels.names, labels.synonyms, strict=True):
        for prompt in row:
            classes.setdefault(prompt.casefold(), []).append(name)
    several = {prompt: names for prompt, names in classes.items() if len(names) > 1}
    return "; ".join(f"{prompt!r} for {names}" for prompt, names in several.items())


def _tidy(texts: Sequence[str]) -> tuple[str, ...]:
    """Collapse white space in texts that can be encoded."""
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"classes must be strings; got {text!r}.")
        try:
            text.encode()
        except UnicodeEncodeError:  # lone surrogates, from bytes that were not UTF-8
            raise ValueError(
                f"classes must be text that can be encoded; got {text.strip()!r}."
            ) from None
    return tuple(" ".join(text.split()) for text in texts)


def _check_class(name: str, prompts: Sequence[str]) -> None:
    if not name:
        raise ValueError(
            f"classes must have no empty name; got {SYNONYM.join(prompts)!r}. Check for a comma at "
            "the end, or two in a row."
        )
    if not prompts or not all(prompts):
        raise ValueError(f"classes must have no empty prompt; got one in {name!r}.")
    if wrong := [prompt for prompt in prompts if SYNONYM in prompt or NAMED in prompt]:
        raise ValueError(f"prompts must contain no '/' and no colon; got {wrong[0]!r}.")
    if twice := _repeated(prompts):
        raise ValueError(f"classes must have no prompt twice; got {twice!r} twice in {name!r}.")


def _repeated(texts: Sequence[str]) -> str | None:
    """Return a text that repeats an earlier one, ignoring case as models do."""
    seen = set()
    for text in texts:
        if text.casefold() in seen:
            return text
        seen.add(text.casefold())
    return None
