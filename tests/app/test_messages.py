"""Messages for people who have a browser and no shell."""

import pytest
import torch

from ovss_refine.app.messages import explain
from ovss_refine.registry import MissingWeightsError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            MissingWeightsError("the weights `x` must be available", "", "pass `--models-dir`"),
            "weights of a model are missing",
        ),
        (
            ModuleNotFoundError(
                "`timm` is not installed; run `pip install 'ovss-refine[models]'`."
            ),
            "software that the server lacks",
        ),
        (MemoryError(), "too little memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "too little memory"),
        (OSError(28, "No space left on device"), "could not read or write"),
    ],
)
def test_what_a_visitor_cannot_mend_is_said_without_a_command(error, words):
    sentence, detail = explain(error)
    assert words in sentence
    assert "--" not in sentence
    assert "pip" not in sentence
    assert detail == (str(error) or "MemoryError")


def test_flags_are_for_the_owner():
    text = (
        "`x.png` must have at most 5 pixels; got 3 x 2 = 6. `max_pixels` (--max-pixels) raises the "
        "limit."
    )
    assert explain(ValueError(text)) == (
        "`x.png` must have at most 5 pixels; got 3 x 2 = 6.",
        text,
    )
    both = "`x.png` must have at most 5 bytes; got 6. --max-bytes raises the limit."
    assert explain(ValueError(both)) == ("`x.png` must have at most 5 bytes; got 6.", both)


def test_other_messages_are_whole():
    text = "`labels` must have no name twice; got 'a' twice. Check them. 1.5 is fine."
    assert explain(ValueError(text)) == (text, "")
    assert explain(ValueError("only --flags here")) == ("only --flags here", "only --flags here")
    assert explain(TypeError()) == ("TypeError", "")
