"""What went wrong, for people who have a browser and no shell.

The library's messages name flags and commands; whoever runs the page can use those, a visitor
cannot. The sentence says what a visitor can do, the detail is what the library said.
"""

import re

import torch

# What a visitor, the network or a missing library can cause; anything else is a bug.
EXPECTED = (
    OSError,
    TypeError,
    ValueError,
    ModuleNotFoundError,
    MemoryError,
    torch.OutOfMemoryError,
)
KINDS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    (
        (FileNotFoundError,),
        "The weights of a model are missing on the server, and it could not download them. Choose "
        "other models, or one of the examples, which need none.",
    ),
    (
        (ModuleNotFoundError,),
        "This model needs software that the server lacks. Choose another model, or one of the "
        "examples, which need none.",
    ),
    (
        (MemoryError, torch.OutOfMemoryError),
        "The server has too little memory for this. Try a smaller image or fewer labels.",
    ),
    ((OSError,), "The server could not read or write a file. Try again in a few minutes."),
)
BUG = "Something went wrong on the server, not with your input. Details are in its terminal."
SHELL = re.compile(r"--[a-z]|\bpip install\b|\bhf download\b")


def explain(error: Exception) -> tuple[str, str]:
    """Return a sentence for a visitor, and what the server's owner needs to know, or "".

    Args:
        error: one of `EXPECTED`.
    """
    text = str(error) or type(error).__name__
    for kinds, sentence in KINDS:
        if isinstance(error, kinds):
            return sentence, text
    sentences = re.split(r"(?<=[.]) (?=[`A-Z-])", text)
    plain = " ".join(sentence for sentence in sentences if not SHELL.search(sentence))
    return plain or text, "" if plain == text else text
