"""Sources that are loaded when they are first needed, once, whoever asks at the same time."""

import inspect
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ovss_refine.attention import AttentionSource
from ovss_refine.labels import Labels, PromptTexts
from ovss_refine.logits import LogitsSource
from ovss_refine.registry import find, require
from ovss_refine.sources.hub import without_waiting
from ovss_refine.sources.listing import UNKNOWN, facts

# Label lists whose embedded texts are kept; one is a few megabytes at most.
KEPT_LABELS = 8
# Options that name other weights than those that `facts` knows the size of.
OTHER_WEIGHTS = ("model", "pretrained", "weights", "proxy", "revision", "variant", "fn", "folder")
# The hub's cache is a setting of the process, so that one source loads at a time.
_LOADING = threading.RLock()
OnLoad = Callable[[], object]


class Slot:
    """One source, by name or ready.

    Attributes:
        lock: whoever asks the source holds it. Sources put hooks on their models, which would
            catch what another thread computes.

    Args:
        kind: "attention" or "logits".
        given: a name, or a source.
        options: what a source is made with that is given by name.
        device: where it is put.
        models_dir: folder of downloads in the layout of the hub's cache; None: the hub's own.

    Raises:
        TypeError: if `given` is neither a name nor a source, or there are options beside a source.
        ValueError: if nothing is registered under the name.
    """

    def __init__(
        self,
        kind: str,
        given: object,
        options: Mapping[str, Any],
        device: torch.device,
        models_dir: Path | None,
    ) -> None:
        """Check that there is such a source, without loading it."""
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
        self.kind, self.given, self.options = kind, given, dict(options)
        self.device, self.models_dir = device, models_dir
        self.lock = threading.RLock()
        self._source: Any = None if isinstance(given, str) else given

    @property
    def download(self) -> str | None:
        """Size of what is downloaded at first use, as a text; None if the source is loaded."""
        if self._source is not None or not isinstance(self.given, str):
            return None
        if any(name in self.options for name in OTHER_WEIGHTS):
            return UNKNOWN["download"]
        return facts(self.kind, self.given)["download"]

    def same_as(self, other: "Slot") -> bool:
        """Whether `other` certainly has the same source, so that one can be used for both."""
        mine, others = (
            (slot.given, slot.options, slot.device, slot.models_dir) for slot in (self, other)
        )
        return all(_same(one, two) for one, two in zip(mine, others, strict=True))

    @property
    def _asks_hub(self) -> bool:
        """Whether weights that are not in the cache come from the hub, as far as is known."""
        download = facts(self.kind, str(self.given))["download"]
        named = [self.options[name] for name in OTHER_WEIGHTS if name in self.options]
        if download == UNKNOWN["download"] or (download == "-" and not named):
            return False
        return all(isinstance(value, str) and not Path(value).exists() for value in named)

    def attention(self, on_load: OnLoad) -> AttentionSource:
        """Return the source of attention; `on_load` is called before it is loaded."""
        with self.lock:
            if self._source is None:
                on_load()
                self._source = self._load()
            source: AttentionSource = self._source
            return source

    def _load(self, **more: Any) -> Any:
        name = str(self.given)
        factory = find(self.kind, name).load()
        taken = inspect.signature(factory).parameters.values()
        takes_device = any(p.name == "device" or p.kind is p.VAR_KEYWORD for p in taken)
        # A model is on the CPU by itself, and not every source has one.
        placed = {"device": str(self.device)} if takes_device and self.device.type != "cpu" else {}
        patience = without_waiting() if self._asks_hub else nullcontext()
        with _LOADING, _cache_at(self.models_dir), patience, _advice(name):
            return factory(**{**more, **placed, **self.options})


class LogitsSlot(Slot):
    """One source of logits, for any labels. Arguments and exceptions are those of `Slot`."""

    def __init__(
        self,
        given: object,
        options: Mapping[str, Any],
        device: torch.device,
        models_dir: Path | None,
    ) -> None:
        """Check that there is such a source, without loading it."""
        if "classes" in options:
            raise TypeError("`logits_options` must be without `classes`: they are the labels.")
        super().__init__("logits", given, options, device, models_dir)
        self._for_labels: OrderedDict[Labels, LogitsSource] = OrderedDict()

    def logits(self, labels: Labels | None, on_load: OnLoad) -> LogitsSource:
        """Return the source for `labels`; None: for its own classes.

        A source with a method `with_classes` is loaded once. A ready one without it keeps its
        classes, which the caller has to compare.

        Args:
            labels: the classes.
            on_load: called before a model is loaded or labels are embedded.

        Raises:
            ValueError: if there are no labels for a source that is given by name.
        """
        if labels is None:
            if isinstance(self.given, str):
                raise ValueError(f"`labels` must be given for {self.given!r}; got None.")
            source: LogitsSource = self.given  # type: ignore[assignment]  # checked on construction
            return source
        with self.lock:
            known = self._for_labels
            if labels not in known:
                known[labels] = self._make(PromptTexts(labels), on_load)
            known.move_to_end(labels)
            if len(known) > KEPT_LABELS:
                known.popitem(last=False)
            return known[labels]

    def _make(self, classes: list[str], on_load: OnLoad) -> LogitsSource:
        source: LogitsSource
        if hasattr(self._source, "with_classes"):
            on_load()
            source = self._source.with_classes(classes)
            return source
        if not isinstance(self.given, str):
            source = self._source
            return source
        on_load()
        # One without `with_classes` has a model for each list: only the newest is held.
        self._for_labels.clear()
        self._source = None
        self._source = source = self._load(classes=classes)
        return source


def check_models_dir(models_dir: str | Path | None) -> Path | None:
    """Return the folder of downloads; None for the hub's own.

    Raises:
        ValueError: if it is a file.
    """
    if models_dir is None:
        return None
    folder = Path(os.path.expanduser(models_dir))  # noqa: PTH111 - Path's own may raise
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`models_dir` must be a folder; `{folder}` is a file.")
    return folder


def _same(one: object, two: object) -> bool:
    """Whether two values are certainly equal; models and tensors are compared by identity."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    plain = (str, int, float, Path, torch.device)
    return one is two or (isinstance(one, plain) and type(one) is type(two) and one == two)


@contextmanager
def _cache_at(folder: Path | None) -> Iterator[None]:
    """Let the hub's downloads go to a folder and come from there; the process's own otherwise.

    The hub's libraries look this setting up at every call. Those who load models in other threads
    meanwhile, without us, find it changed.
    """
    if folder is None:
        yield
        return
    constants: Any = require("huggingface_hub.constants", "models")
    before = constants.HF_HUB_CACHE
    constants.HF_HUB_CACHE = str(folder)
    try:
        yield
    finally:
        constants.HF_HUB_CACHE = before


@contextmanager
def _advice(name: str) -> Iterator[None]:
    """Say what to do where weights are neither in the cache nor to be downloaded."""
    try:
        yield
    except FileNotFoundError as error:
        found, asked, _ = str(error).partition("; run `hf download")
        if not asked:
            raise  # a file that the options name
        raise FileNotFoundError(
            f"{name}: {found}; take a folder of downloads from a machine with a network "
            "(`models_dir`, --models-dir), set HF_ENDPOINT to a mirror of the hub, or see what "
            "needs no weights: `ovss-refine demo`."
        ) from error
