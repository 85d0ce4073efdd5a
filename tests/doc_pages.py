"""The documents as data: their blocks of code, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^(`{3,}) *(\w*)[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
# What is run, or looked at, where it stands in a line of text.
INLINE = re.compile(r"`((?:ovss-refine |pip install |python benchmarks/)[^`]+)`")
ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text and the line that it starts on."""

    page: str
    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A command of a page, as the words that a shell would make of it."""

    page: str
    words: tuple[str, ...]
    inline: bool

    @property
    def program(self):
        return Path(self.words[0]).name

    def __str__(self):
        return " ".join(self.words)


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language=None):
    """Return the blocks of a page, or those of one language, in order."""
    text = read(page)
    found = [
        Block(page, match[2], match[3], text.count("\n", 0, match.start()) + 2)
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def split(text):
    """Split a script into commands: lines, their continuations joined, and what `&&` joins."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, "&&"]:
            if word not in ("&&", ";"):
                if set(word) & set("|<>&") and len(set(word)) == 1:
                    raise ValueError(f"pipes and redirections are not known here; got {line!r}")
                if words or not ASSIGNMENT.match(word):
                    words.append(word)
            elif words:
                yield tuple(words)
                words = []


def commands(page):
    """Return the commands of a page: of its blocks for a shell, and within the text."""
    found = [
        Command(page, words, inline=False)
        for block in blocks(page, "bash")
        for words in split(block.text)
    ]
    for span in INLINE.findall(FENCE.sub("", read(page))):
        found += [Command(page, words, inline=True) for words in split(span.replace("\n", " "))]
    return found


def all_commands():
    """Return the commands of all pages, each once."""
    found = {}
    for page in PAGES:
        for command in commands(page):
            found.setdefault(command.words, command)
    return list(found.values())
