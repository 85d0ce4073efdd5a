"""Class names and their prompts, as people write them in a text, a list or a file.

    cat, dog/puppy, background: wall/floor/sky

is three classes: "cat", "dog" with two prompts, and "background" with three. This module imports
neither torch nor numpy: the command line reads labels before it loads either.
"""

import codecs
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SYNONYM, NAMED = "/", ":"
# What separates the prompts of a class in a file: ours, SCLIP's and its descendants', ProxyCLIP's.
IN_FILES = "/,;"
GRAMMAR = '"cat, dog/puppy, background: wall/floor/sky"'


@dataclass(frozen=True, slots=True)
class Labels:
    """The classes to look for, and the prompts that stand for each.

    Runs of blanks become one. A prompt may stand for two classes, as in published lists; the
    functions that read labels warn of it.

    Attributes:
        names: M names, distinct without regard to case.
        synonyms: M tuples of one prompt or more, distinct within a class without regard to case.

    Raises:
        TypeError: if a name or a prompt is not a string.
        ValueError: if there is no class, a name or a prompt is empty, occurs twice or cannot be
            encoded, a prompt has a "/" or a colon, or there are not as many rows of prompts as
            names.
    """

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        """Check everything, and make every run of blanks one."""
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
        """M texts, one for each class: its prompts with "/" between them."""
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

    def __str__(self) -> str:
        """Write the labels in the form that `parse_labels` reads."""
        rows = zip(self.names, self.synonyms, self.prompts, strict=True)
        return ", ".join(p if row[0] == name else f"{name}: {p}" for name, row, p in rows)


LabelsLike = Labels | str | Path | Iterable[str]


class PromptTexts(list[str]):
    """`Labels.prompts` as a list, which is what a source of logits takes as `classes`.

    The names of the classes are not in these texts. A source that reads the list with `as_labels`
    gets the labels that it was made of, names included.

    Args:
        labels: the labels.
    """

    def __init__(self, labels: Labels) -> None:
        """Keep the labels beside their prompts."""
        super().__init__(labels.prompts)
        self.labels = labels


def as_labels(labels: LabelsLike) -> Labels:
    """Read labels in any of the forms that a user may give.

    Args:
        labels: one text for `parse_labels`; a list with a text for each class, such as "cat",
            "dog/puppy" or "background: wall/floor" (commas are part of the text there); a `Path`
            for `read_labels`; or `Labels`.

    Raises:
        TypeError: if a label is not a string.
        ValueError: as `Labels` does, or if a text has two colons.
        FileNotFoundError: if there is no such file.

    Warns:
        UserWarning: if classes share a prompt.
    """
    if isinstance(labels, Labels):
        return labels
    if isinstance(labels, PromptTexts) and tuple(labels) == labels.labels.prompts:
        return labels.labels
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
    """Read one text: classes with commas or line breaks between them.

    Args:
        text: such as "cat, dog/puppy, background: wall/floor/sky". A class is its prompts with "/"
            between them, and is called by the first; or a name, a colon and the prompts.

    Raises:
        ValueError: as `Labels` does, or if a class has two colons.

    Warns:
        UserWarning: if classes share a prompt.

    Example:
        >>> parse_labels("cat, dog/puppy, background: wall/floor").names
        ('cat', 'dog', 'background')
    """
    return _labels(text.strip().replace("\n", ",").split(","))


def read_labels(path: str | Path) -> Labels:
    """Read a file of class names: one class a line, in order.

    A line is the prompts of a class, which is called by the first; or a name, a colon and the
    prompts. Between prompts stands "/", "," or ";", so that the files published with SCLIP,
    ProxyCLIP and their descendants (`cls_*.txt`) are read as they are. In a single line the latter
    two might as well separate classes, and are refused.

    Args:
        path: a UTF-8 text file, with or without a byte-order mark. Blank lines at its end are
            ignored.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8, a line is blank, a single line has a "," or ";", and as
            `Labels` does; the message names the file.

    Warns:
        UserWarning: if classes share a prompt.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` must be an existing file of class names, one a line.")
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"`{path}` must have a class on every line; line {number} is blank.")
    if len(lines) == 1 and any(mark in lines[0] for mark in ",;"):
        raise ValueError(
            f"`{path}` must have one class a line; got one line with ',' or ';', which may stand "
            "between classes or synonyms. Write each class on a line of its own."
        )
    table = str.maketrans(dict.fromkeys(IN_FILES, SYNONYM))
    try:
        return _labels([line.translate(table) for line in lines], f"`{path}`: ")
    except ValueError as error:
        raise ValueError(f"`{path}`: {error}") from None


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 file, without blank lines at its end.

    Raises:
        ValueError: if it is not UTF-8.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a byte-order mark is valid UTF-8, with zeros in it
        marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        got = "UTF-16" if data.startswith(marks) else "another encoding"
        raise ValueError(f"`{path}` must be UTF-8 text; got {got}. Save it as UTF-8.")
    return text.rstrip().splitlines()


def _labels(texts: Iterable[str], where: str = "") -> Labels:
    rows = [_class(text) for text in texts]
    labels = Labels(tuple(name for name, _ in rows), tuple(prompts for _, prompts in rows))
    if shared := _shared(labels):
        warnings.warn(
            f"{where}some prompts stand for several classes, which a model cannot tell apart by "
            f"them: {shared}.",
            stacklevel=3,
        )
    return labels


def _class(text: str) -> tuple[str, tuple[str, ...]]:
    """Split one class into its name and its prompts."""
    if not isinstance(text, str):
        raise TypeError(f"classes must be strings; got {text!r}.")
    name, colon, prompts = text.partition(NAMED)
    if NAMED in prompts:
        raise ValueError(f"classes must have at most one colon; got {text.strip()!r}.")
    row = tuple((prompts if colon else text).split(SYNONYM))
    return (name if colon else row[0]), row


def _shared(labels: Labels) -> str:
    """List the prompts that stand for several classes, with these; "": there are none."""
    classes: dict[str, list[str]] = {}
    for name, row in zip(labels.names, labels.synonyms, strict=True):
        for prompt in row:
            classes.setdefault(prompt.casefold(), []).append(name)
    several = {prompt: names for prompt, names in classes.items() if len(names) > 1}
    return "; ".join(f"{prompt!r} for {names}" for prompt, names in several.items())


def _tidy(texts: Sequence[str]) -> tuple[str, ...]:
    """Make every run of blanks one, in texts that can be written."""
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"classes must be strings; got {text!r}.")
        try:
            text.encode()
        except UnicodeEncodeError:  # bytes that were not UTF-8 came in as lone surrogates
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
        raise ValueError(f"prompts must have no '/' and no colon in them; got {wrong[0]!r}.")
    if twice := _repeated(prompts):
        raise ValueError(f"classes must have no prompt twice; got {twice!r} twice in {name!r}.")


def _repeated(texts: Sequence[str]) -> str | None:
    """Return a text that is there before; to a model they have no case."""
    seen = set()
    for text in texts:
        if text.casefold() in seen:
            return text
        seen.add(text.casefold())
    return None
