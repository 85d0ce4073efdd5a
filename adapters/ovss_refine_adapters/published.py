"""The settings that published methods use on eight data sets, from their released configurations.

They belong together: a threshold means something only with its prompts, scale and windows. Those of
CASS and RF-CLIP were chosen on the test sets.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from ovss_refine.checks import check_choice
from ovss_refine_adapters.logits.global_text import PUBLISHED as TEXT

DATA_SETS = (
    "voc21",
    "voc20",
    "context60",
    "context59",
    "coco-object",
    "coco-stuff",
    "cityscapes",
    "ade20k",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """How a method was run on a data set.

    Attributes:
        short_side: images are resized to it.
        window: side of the sliding windows; None: whole image.
        stride: step from window to window.
        logit_scale: factor on the cosines.
        probability_threshold: pixels below it are background.
        area_threshold: share of the foreground at which a class is dropped; None: no such rule.
        pamr_iterations: rounds of PAMR on the scores at full size; 0: none.
        twice: whole images' scores are resized to the resized image first, then to full size.
        own: options that this method alone has.
    """

    short_side: int = 336
    window: int | None = 224
    stride: int = 112
    logit_scale: float = 40.0
    probability_threshold: float = 0.0
    area_threshold: float | None = None
    pamr_iterations: int = 0
    twice: bool = False
    own: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> dict[str, Any]:
        """The options for `load_logits`."""
        names = ("short_side", "window", "stride", "logit_scale")
        return {name: getattr(self, name) for name in names} | self.own

    @property
    def decision(self) -> dict[str, Any]:
        """The options for `decide`, save the sizes."""
        names = ("probability_threshold", "area_threshold")
        return {name: getattr(self, name) for name in names}


Exceptions = dict[str, dict[str, Any]]

_FAMILY = Published()
_CITYSCAPES: Exceptions = {"cityscapes": {"short_side": 560}}
_CASS: Exceptions = {
    "voc21": {"window": None, "probability_threshold": 0.1},
    "context60": {"probability_threshold": 0.1},
    "coco-object": {"probability_threshold": 0.1},
    **_CITYSCAPES,
}


def _with_text(stretched: bool) -> Exceptions:
    """Add the text settings of CASS and RF-CLIP, and whether CASS stretches its spectrum."""
    added: Exceptions = {}
    for name in DATA_SETS:
        own: dict[str, Any] = dict(TEXT[name])
        own["global_from"] = "window" if name == "cityscapes" else "image"
        if stretched:
            own["spectrum_stretch"] = name not in ("voc20", "cityscapes")
        added[name] = _CASS.get(name, {}) | {"own": own}
    return added


_SETTINGS: dict[str, tuple[Published, Exceptions]] = {
    "sclip": (
        _FAMILY,
        {
            "voc21": {"logit_scale": 65.0, "probability_threshold": 0.1, "area_threshold": 0.1},
            "context60": {"logit_scale": 50.0, "probability_threshold": 0.1},
            "coco-object": {"logit_scale": 50.0, "probability_threshold": 0.1},
            "coco-stuff": {"short_side": 448},
            **_CITYSCAPES,
        },
    ),
    "clearclip": (
        Published(short_side=448, window=448, stride=224, logit_scale=50.0),
        {
            "voc21": {"probability_threshold": 0.5},
            "context60": {"probability_threshold": 0.15},
            "coco-object": {"probability_threshold": 0.4},
            "cityscapes": {"window": 224, "stride": 224},
        },
    ),
    "naclip": (
        replace(_FAMILY, pamr_iterations=10, twice=True),
        {
            "voc21": {"window": None, "probability_threshold": 0.1},
            "voc20": {"window": None},
            "context60": {"probability_threshold": 0.1},
            "coco-object": {"probability_threshold": 0.1},
            **_CITYSCAPES,
        },
    ),
    "proxyclip": (
        replace(_FAMILY, window=336),
        {
            "voc21": {"probability_threshold": 0.2},
            "context60": {"probability_threshold": 0.15},
            "coco-object": {"probability_threshold": 0.25},
            "cityscapes": {"short_side": 448, "window": 224},
            "ade20k": {"short_side": 448},
        },
    ),
    "sc-clip": (
        _FAMILY,
        {
            "voc21": {"logit_scale": 50.0, "probability_threshold": 0.15, "area_threshold": 0.1},
            "context60": {"probability_threshold": 0.15},
            "coco-object": {"logit_scale": 55.0, "probability_threshold": 0.35},
            **_CITYSCAPES,
        },
    ),
    "cass": (replace(_FAMILY, twice=True), _with_text(stretched=True)),
    "rf-clip": (replace(_FAMILY, twice=True), _with_text(stretched=False)),
}


def published(method: str, data_set: str) -> Published:
    """Look up how `method` was run on `data_set`.

    Args:
        method: "sclip", "clearclip", "naclip", "proxyclip", "sc-clip", "cass" or "rf-clip".
        data_set: one of `DATA_SETS`.

    Raises:
        ValueError: on another method or data set.
    """
    check_choice("method", method, tuple(_SETTINGS))
    check_choice("data_set", data_set, DATA_SETS)
    usual, exceptions = _SETTINGS[method]
    return replace(usual, **exceptions.get(data_set, {}))
