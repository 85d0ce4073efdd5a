"""Sources that are loaded at first use, once even if several threads need them."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from ovss_refine.attention import AttentionSource
from ovss_refine.folders.paths import local_path
from ovss_refine.labels import Labels
from ovss_refine.logits import LogitsSource
from ovss_refine.registry import MissingWeightsError, find, require
from ovss_refine.sources.device import Placement
from ovss_refine.sources.listing import UNKNOWN, facts

# Labels whose text embeddings are kept; one set is a few megabytes at most.
KEPT_LABELS = 8
# Options that name other weights than those whose size `facts` knows.
OTHER_WEIGHTS = (
    "model",
    "pretrained",
    "weights",
    "proxy",
    "revision",
    "variant",
    "fn",
    "folder",
    "clip",
)
# The path of the hub's cache is global, so that one source loads at a time.
_LOADING = threading.RLock()
OnLoad = Callable[[], object]


class LazySource:
    """One source, by name or ready.

    Attributes:
        lock: must be held while the source runs: sources put hooks on their models, which would
            capture what another thread computes.

    Args:
        kind: "attention" or "logits".
        given: a name, or a source.
        options: keyword arguments of a source given by name.
        place: where the models of such a source are put, and their dtype.
        models_dir: folder of downloads in the layout of the hub's cache; None: the hub's own.

    Raises:
        TypeError: if `given` is neither a name nor a source, a ready source has options, or the
            options of a source of logits have `classes`.
        ValueError: if nothing is registered under the name.
    """

    def __init__(
        self,
        kind: str,
        given: object,
        options: Mapping[str, Any],
        place: Placement,
        models_dir: Path | None,
    ) -> None:
        """Check the arguments; load nothing."""
        protocol = {"attention": AttentionSource, "logits": LogitsSource}[kind]
        if not isinstance(given, (str, protocol)):
            raise TypeError(
                f"`{kind}` must be the name of a source or have a method `{kind}`; got "
                f"{type(given).__name__}."
            )
        if isinstance(given, str):
            find(kind, given)
        elif options:
            raise TypeError(f"`{kind}_options` must be empty with a ready source; got {options}.")
        if kind == "logits" and "classes" in options:
            raise TypeError("`logits_options` must not have `classes`: they are the labels.")
        self.kind, self.given, self.options = kind, given, dict(options)
        self.place, self.models_dir = place, models_dir
        self.lock = threading.RLock()
        self._source: Any = None if isinstance(given, str) else given
        self._for_labels: OrderedDict[Labels, LogitsSource] = OrderedDict()

    @property
    def download(self) -> str | None:
        """Size of the download at first use, as a text; None if the source is loaded."""
        if self._source is not None or not isinstance(self.given, str):
            return None
        if any(name in self.options for name in OTHER_WEIGHTS):
            return UNKNOWN["download"]
        return facts(self.kind, self.given)["download"]

    def same_as(self, other: "LazySource") -> bool:
        """Whether `other` certainly stands for the same source."""
        names = ("kind", "given", "options", "place", "models_dir")
        return all(_same(getattr(self, name), getattr(other, name)) for name in names)

    def attention(self, on_load: OnLoad) -> AttentionSource:
        """Return the source of attention; `on_load` is called before loading it."""
        with self.lock:
            if self._source is None:
                on_load()
                self._source = self._load()
            source: AttentionSource = self._source
            return source

    def logits(self, labels: Labels | None, on_load: OnLoad) -> LogitsSource:
        """Return the source of logits for `labels`; None: for its own classes.

        A source with a method `with_classes` is loaded once. A ready one without it keeps its
        classes, which the caller must compare. `on_load` is called before a model is loaded or
        labels are embedded.

        Raises:
            ValueError: if a source given by name gets no labels.
        """
        if labels is None:
            if isinstance(self.given, str):
                raise ValueError(f"`labels` must be given for {self.given!r}; got None.")
            source: LogitsSource = self.given  # type: ignore[assignment]  # checked on construction
            return source
        with self.lock:
            known = self._for_labels
            if labels not in known:
                known[labels] = self._make(labels, on_load)
            known.move_to_end(labels)
            if len(known) > KEPT_LABELS:
                known.popitem(last=False)
            return known[labels]

    def _make(self, labels: Labels, on_load: OnLoad) -> Any:
        if hasattr(self._source, "with_classes"):
            on_load()
            return self._source.with_classes(labels)
        if isinstance(self.given, str):
            on_load()
            # A source without `with_classes` has a model of its own: only the newest is held.
            self._for_labels.clear()
            self._source = None
            self._source = self._load(classes=labels)
        return self._source

    def _load(self, **more: Any) -> Any:
        name = str(self.given)
        factory = find(self.kind, name).load()
        with _LOADING, _advice(name), ExitStack() as stack:
            if self.models_dir is not None:
                stack.enter_context(_cache_at(self.models_dir))
            return factory(**{**more, **self.place.options(factory), **self.options})


def check_models_dir(models_dir: str | Path | None) -> Path | None:
    """Return the folder of downloads, None for the hub's; raise ValueError for a file or URL."""
    if models_dir is None:
        return None
    folder = local_path("models_dir", os.path.expanduser(models_dir))  # noqa: PTH111 - Path's own may raise
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`models_dir` must be a folder; got the file `{folder}`.")
    return folder


def _same(one: object, two: object) -> bool:
    """Whether two options are certainly equal; models and tensors are compared by identity."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    plain = (str, int, float, Path, torch.device, torch.dtype, Placement)
    return one is two or (isinstance(one, plain) and type(one) is type(two) and one == two)


@contextmanager
def _cache_at(folder: Path) -> Iterator[None]:
    """Redirect the hub's downloads and cache to a folder.

    The hub's library reads this global setting at every call: other threads that load models
    meanwhile, outside of this module, use the folder too.
    """
    constants: Any = require("huggingface_hub.constants", "models")
    before = constants.HF_HUB_CACHE
    constants.HF_HUB_CACHE = str(folder)
    try:
        yield
    finally:
        constants.HF_HUB_CACHE = before


@contextmanager
def _advice(name: str) -> Iterator[None]:
    """Name the source of missing weights, and the fixes that a segmenter has."""
    try:
        yield
    except MissingWeightsError as error:
        raise FileNotFoundError(
            f"{name}: {error.lack}{error.not_asked}; pass a folder of downloads from a machine "
            "with a network (`models_dir`, --models-dir), set HF_ENDPOINT to a mirror of the hub, "
            "or try what needs no weights: `ovss-refine demo`."
        ) from error
