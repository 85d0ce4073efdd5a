"""Classes of one's own. Imports neither torch nor numpy."""

from typing import Any

from ovss_refine.evaluation.items import IGNORE
from ovss_refine.labels import Labels


def own_classes(labels: Labels, origin: str, first_is_ignored: bool) -> dict[str, Any]:
    """Return the fields of a `DataSet` that describe classes of one's own.

    Raises:
        ValueError: if an 8-bit mask cannot tell them apart; names `origin`.
    """
    most = IGNORE - first_is_ignored
    if not 2 <= len(labels) <= most:
        raise ValueError(
            f"`{origin}` must name at least 2 and at most {most} classes, as {IGNORE} marks "
            f"ignored pixels; got {len(labels)}. A background is a class."
        )
    return {
        "names": labels.names,
        "first_is_ignored": first_is_ignored,
        "prompts": {"names": dict(zip(labels.names, labels.synonyms, strict=True))},
    }
