"""What the page computes: the examples from their own files, all else with a `Segmenter`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Thread
from typing import Any

from torch import Tensor

from ovss_refine.app.uploads import Upload
from ovss_refine.attention import Attention, as_attention
from ovss_refine.examples import example_names, read_example
from ovss_refine.logits import Logits
from ovss_refine.segmentation import Segmentation
from ovss_refine.segmenter import Segmenter

EXAMPLE_NAMES = {"astronaut": "Eileen Collins", "chelsea": "Chelsea the cat"}
OnStage = Callable[[str], object]


class GivenLogits:
    """Scores that are there already, as a source of one image.

    Args:
        logits: [K, h, w], with the names of the classes.
    """

    def __init__(self, logits: Logits) -> None:
        """Hold what will be given."""
        self.held = replace(logits, values=logits.values[None])

    def logits(self, images: Tensor) -> Logits:
        """Return the scores, whatever the image."""
        return self.held


class GivenAttention:
    """Attention that is there already, as a source of one image.

    Args:
        attention: without a batch axis.
    """

    def __init__(self, attention: Attention) -> None:
        """Hold what will be given."""
        self.held = attention.batched()

    def attention(self, images: Tensor) -> Attention:
        """Return the attention, whatever the image."""
        return self.held


@dataclass(frozen=True, slots=True, eq=False)
class Example(Upload):
    """A built-in photograph with scores and attention of its own."""

    logits: GivenLogits
    attention: GivenAttention

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.logits.held.names)


def pick_example(stem: str) -> Example:
    """Read a built-in photograph, one of `EXAMPLE_NAMES`, for the page."""
    inputs = read_example(stem)
    index, names = inputs.prompt_index, example_names()
    logits = Logits(inputs.logits.float(), prompt_index=index, names=names)
    h, w = inputs.logits.shape[-2:]
    attention = as_attention(inputs.attention, (h, w))
    return Example(stem, inputs.image, GivenLogits(logits), GivenAttention(attention))


class Worker:
    """Does the work of all visitors.

    Args:
        segmenter: what the models are loaded with: device, folder of weights, limits.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        """Load nothing yet."""
        self._segmenter = segmenter

    def to_load(self, logits: str, attention: str) -> dict[str, str]:
        """Name the sources that are not loaded yet, with the sizes of their downloads."""
        return self._segmenter.with_options(logits=logits, attention=attention).to_load()

    def refine_example(self, example: Example, options: dict[str, Any]) -> Segmentation:
        """Refine an example's own scores with its own attention.

        Raises:
            ValueError: on an option out of range.
        """
        segmenter = self._segmenter.with_options(
            logits=example.logits,
            attention=example.attention,
            logits_options=None,
            attention_options=None,
            max_pixels=None,  # the limit is for what strangers bring
            **options,
        )
        return segmenter(example.pixels, None, baseline=True, keep_attention=True)

    def segment(
        self,
        picture: Upload,
        labels: str,
        logits: str,
        attention: str,
        options: dict[str, Any],
        on_stage: OnStage,
        known: Attention | None = None,
    ) -> Segmentation:
        """Segment a photograph with models, which are loaded if they are not.

        Args:
            picture: the photograph.
            labels: as people type them.
            logits: name of a source.
            attention: name of a source.
            options: of the refinement.
            on_stage: called with the name of each stage as it begins.
            known: what that source of attention gave for that photograph before, if it did.

        Raises:
            ValueError: on labels, options or a photograph that will not do.
            OSError: if weights cannot be found.
            ModuleNotFoundError: if a library is missing.
        """
        models = self._segmenter.with_options(logits=logits, attention=attention)
        if known is not None:
            options = {**options, "attention": GivenAttention(known)}
        wanted = models.with_options(**options)
        made = wanted(picture.pixels, labels, baseline=True, keep_attention=True, on_stage=on_stage)
        # The next shares what was loaded; what this one did not use is freed.
        self._segmenter = models
        return made


def staged(work: Callable[[OnStage], Segmentation]) -> Iterator[str | Segmentation]:
    """Do work in a thread of its own; give the name of every stage as it begins, then the result.

    Raises:
        Exception: whatever the work raises.
    """
    news: SimpleQueue[str | Segmentation | Exception] = SimpleQueue()

    def do() -> None:
        try:
            news.put(work(news.put))
        except Exception as err:  # raised again below, where the visitor is
            news.put(err)

    # A daemon: a download that nobody waits for must not keep the server from stopping.
    Thread(target=do, daemon=True).start()
    while True:
        what = news.get()
        if isinstance(what, Exception):
            raise what
        yield what
        if isinstance(what, Segmentation):
            return
