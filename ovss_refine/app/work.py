"""What the page computes: examples from their own logits and attention, all else with models."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Thread
from typing import Any

from torch import Tensor

from ovss_refine.app.uploads import NamedImage
from ovss_refine.attention import Attention
from ovss_refine.examples import example_labels, read_example
from ovss_refine.logits import Logits
from ovss_refine.refiner import as_attention
from ovss_refine.segmentation import Segmentation
from ovss_refine.segmenter import Segmenter
from ovss_refine.sources.stages import OnStage

EXAMPLE_NAMES = {
    "astronaut": "Eileen Collins",
    "coffee": "A cup of coffee",
    "hopper": "Grace Hopper",
    "raccoon": "A raccoon",
}


@dataclass(frozen=True, slots=True, eq=False)
class FixedAttention:
    """A source that returns `held`, the attention of one image, for any image."""

    held: Attention

    def attention(self, images: Tensor) -> Attention:
        """Return `held` as a batch of one."""
        return self.held.batched().to(images.device)


@dataclass(frozen=True, slots=True, eq=False)
class FixedLogits:
    """A source that returns `held`, the logits of one image, for any image."""

    held: Logits

    def logits(self, images: Tensor) -> Logits:
        """Return `held` as a batch of one."""
        return replace(self.held, values=self.held.values[None].to(images.device))


@dataclass(frozen=True, slots=True, eq=False)
class Example(NamedImage):
    """A built-in image that is also the source of its own logits and attention, batches of one."""

    own_logits: Logits
    own_attention: Attention

    def logits(self, images: Tensor) -> Logits:
        """Return the image's own logits."""
        return self.own_logits

    def attention(self, images: Tensor) -> Attention:
        """Return the image's own attention."""
        return self.own_attention


def pick_example(stem: str) -> Example:
    """Read a built-in image, a key of `EXAMPLE_NAMES`."""
    inputs = read_example(stem)
    values = inputs.logits[None].float()  # [1, K, h, w]
    logits = Logits(values, prompt_index=inputs.prompt_index, names=example_labels(stem).names)
    h, w = values.shape[2:]
    attention = as_attention(inputs.attention, (h, w), inputs.image.shape[:2])
    return Example(stem, inputs.image, logits, attention.batched())


class Worker:
    """Does the work of all visitors.

    Args:
        segmenter: has the device, the folder of weights and the limits.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        """Hold the segmenter; load nothing yet."""
        self.segmenter = segmenter

    def to_load(self, logits: str, attention: str) -> dict[str, str]:
        """Return the download sizes of those of two sources that are not loaded yet."""
        return self.segmenter.with_options(logits=logits, attention=attention).to_load()

    def refine_example(self, example: Example, options: dict[str, Any]) -> Segmentation:
        """Refine an example's own logits with its own attention.

        Raises:
            ValueError: on an option out of range.
        """
        segmenter = self.segmenter.with_options(
            logits=example,
            attention=example,
            logits_options=None,
            attention_options=None,
            max_pixels=None,  # the limit is for uploads
            **options,
        )
        return segmenter(example.pixels, None, baseline=True, keep_attention=True, keep_logits=True)

    def refine_again(self, made: Segmentation, options: dict[str, Any]) -> Segmentation:
        """Refine the kept logits of a result with its kept attention; no model runs.

        Raises:
            ValueError: on an option out of range.
        """
        assert made.logits is not None  # noqa: S101 - kept by both functions here
        assert made.attention is not None  # noqa: S101 - likewise
        segmenter = self.segmenter.with_options(
            logits=FixedLogits(made.logits),
            attention=FixedAttention(made.attention),
            logits_options=None,
            attention_options=None,
            max_pixels=None,
            **options,
        )
        again = segmenter(made.image, None)
        return replace(
            again,
            image=made.image,
            baseline=made.baseline,
            seconds={"refinement": again.seconds["refinement"]},
            attention=made.attention,
            logits=made.logits,
        )

    def segment(
        self,
        image: NamedImage,
        labels: str,
        logits: str,
        attention: str,
        options: dict[str, Any],
        on_stage: OnStage,
        known: Attention | None = None,
    ) -> Segmentation:
        """Segment an image with two sources by name, loading their models if needed.

        `known` is what the source of attention returned for this image before, if it was asked.

        Raises:
            ValueError: on invalid labels, options or image.
            OSError: if weights are unavailable.
            ModuleNotFoundError: if a library is missing.
        """
        models = self.segmenter.with_options(logits=logits, attention=attention)
        if known is not None:
            options = {**options, "attention": FixedAttention(known)}
        segmenter = models.with_options(**options)
        made = segmenter(
            image.pixels,
            labels,
            baseline=True,
            keep_attention=True,
            keep_logits=True,
            on_stage=on_stage,
        )
        # Models that this run loaded are kept for the next; those that it did not use are freed.
        self.segmenter = models
        return made


def staged(work: Callable[[OnStage], Segmentation]) -> Iterator[str | Segmentation]:
    """Run `work` in a thread; yield the name of each stage as it begins, then the result.

    Raises:
        Exception: whatever the work raises.
    """
    news: SimpleQueue[str | Segmentation | Exception] = SimpleQueue()

    def do() -> None:
        try:
            news.put(work(news.put))
        except Exception as err:  # raised again below, in the visitor's thread
            news.put(err)

    # A daemon: a download that nobody waits for must not keep the server from stopping.
    Thread(target=do, daemon=True).start()
    while not isinstance(what := news.get(), Segmentation):
        if isinstance(what, Exception):
            raise what
        yield what
    yield what
