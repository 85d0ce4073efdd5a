"""Labels as people type them: names, synonyms, a background of several words.

    cat, dog/puppy, background: wall/floor/sky

is three classes: "cat", "dog" with two prompts, and "background" with three. Nothing here knows of
models: sources of logits take the prompts of a class as one text with "/" between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SYNONYM, NAMED = "/", ":"
GRAMMAR = '"cat, dog/puppy, background: wall/floor/sky"'


@dataclass(frozen=True, slots=True)
class Labels:
    """The classes to look for.

    Attributes:
        names: M names, distinct without regard to case.
        prompts: M texts, one for each class: its prompts with "/" between them. No prompt occurs
            twice, in one class or in two.

    Raises:
        TypeError: if a name or a text is not a string.
        ValueError: if there is none, one is empty or occurs twice, or there are not as many texts
            as names.
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check everything, and make every run of blanks one."""
        for texts in (self.names, self.prompts):
            if wrong := [text for text in texts if not isinstance(text, str)]:
                raise TypeError(f"`labels` must be strings; got {wrong[0]!r}.")
        names = tuple(" ".join(name.split()) for name in self.names)
        split = [[" ".join(p.split()) for p in text.split(SYNONYM)] for text in self.prompts]
        if wrong := [text for text in (*names, *self.prompts) if not _is_text(text)]:
            raise ValueError(f"`labels` must be text; got {wrong[0]!r}, with half a letter.")
        if not names or len(names) != len(split):
            raise ValueError(
                f"`labels` must be at least one, with prompts for each; got {len(names)} names and "
                f"{len(split)} texts."
            )
        for name, row in zip(names, split, strict=True):
            _check_filled(name, row)
        _check_distinct("name", names)
        _check_distinct("prompt", [prompt for row in split for prompt in row])
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "prompts", tuple(SYNONYM.join(row) for row in split))

    def __len__(self) -> int:
        """Number of classes, M."""
        return len(self.names)

    def __str__(self) -> str:
        """Write the labels in the form that `parse_labels` reads."""
        return ", ".join(map(_written, self.names, self.prompts))


LabelsLike = Labels | str | Sequence[str]


def as_labels(labels: LabelsLike) -> Labels:
    """Read labels in any of the forms that a user may give.

    Args:
        labels: one text for `parse_labels`; a list with a text for each class, such as "cat",
            "dog/puppy" or "background: wall/floor" (commas are part of the text there); or
            `Labels`.

    Raises:
        TypeError: if a label is not a string.
        ValueError: as `Labels` does, or if a text has two colons.
    """
    if isinstance(labels, Labels):
        return labels
    if isinstance(labels, str):
        return parse_labels(labels)
    if not isinstance(labels, Sequence):
        raise TypeError(
            f"`labels` must be a text such as {GRAMMAR} or a list; got {type(labels).__name__}."
        )
    return _labels(labels)


def parse_labels(text: str) -> Labels:
    """Read one text: classes with commas or line breaks between them.

    Args:
        text: such as "cat, dog/puppy, background: wall/floor/sky". A class is its prompts with "/"
            between them, and is called by the first; or a name, a colon and the prompts.

    Raises:
        ValueError: as `Labels` does, or if a class has two colons.

    Example:
        >>> parse_labels("cat, dog/puppy, background: wall/floor").names
        ('cat', 'dog', 'background')
    """
    return _labels(text.strip().replace("\n", ",").split(","))


def read_labels(path: str | Path) -> Labels:
    """Read a file of labels: one class a line, as `parse_labels` reads a class.

    The published files of class names (`cls_*.txt` of SCLIP and its descendants) are read as well:
    a comma stands between synonyms, as "/" does. Where there is only one line, a comma might as
    well stand between classes, and is refused.

    Args:
        path: a UTF-8 text file. Blank lines at its end do not count.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not text, a line is blank, a single line has commas, and as `Labels`
            does; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the labels must be in a file; `{path}` is none.")
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"`{path}` must be a text file with one class a line.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"`{path}` must have a class on every line; line {number} is blank.")
    if len(lines) == 1 and "," in lines[0]:
        raise ValueError(
            f"`{path}` must have one class a line; got one line with commas, which may stand "
            "between classes or synonyms. Write each class on a line of its own."
        )
    try:
        return _labels([line.replace(",", SYNONYM) for line in lines])
    except ValueError as error:
        raise ValueError(f"`{path}`: {error}") from None


def _labels(texts: Sequence[str]) -> Labels:
    rows = [_class(text) for text in texts]
    return Labels(tuple(name for name, _ in rows), tuple(prompts for _, prompts in rows))


def _class(text: str) -> tuple[str, str]:
    """Split one class into its name and its prompts."""
    if not isinstance(text, str):
        raise TypeError(f"`labels` must be strings; got {text!r}.")
    name, colon, prompts = text.partition(NAMED)
    if NAMED in prompts:
        raise ValueError(f"`labels` must have at most one colon in a class; got {text.strip()!r}.")
    return (name, prompts) if colon else (text.partition(SYNONYM)[0], text)


def _is_text(text: str) -> bool:
    """Whether a text can be written: bytes that were not UTF-8 came in as halves of letters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_filled(name: str, prompts: Sequence[str]) -> None:
    if not name:
        raise ValueError(
            f"`labels` must have no empty label; got {SYNONYM.join(prompts)!r}. Look for a comma "
            "too many."
        )
    if not all(prompts):
        raise ValueError(f"`labels` must have no empty prompt; got one in {name!r}.")


def _check_distinct(what: str, texts: Sequence[str]) -> None:
    """Raise if two texts are the same to a model, whose tokens have no case."""
    seen = set()
    for text in texts:
        if text.casefold() in seen:
            raise ValueError(f"`labels` must have no {what} twice; got {text!r} twice.")
        seen.add(text.casefold())


def _written(name: str, prompts: str) -> str:
    return prompts if prompts.partition(SYNONYM)[0] == name else f"{name}: {prompts}"
