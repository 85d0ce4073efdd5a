"""Data sets: their folders, the meaning of their labels, the settings published for them.

Each is a TOML file in `data_sets/`. The folders are those of the open-vocabulary repositories, so
that whoever has run one of them need not move files.

This file imports neither torch nor numpy, because the command line needs the names of data sets.
"""

import difflib
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovss_refine.checks import check_flag
from ovss_refine.evaluation.items import IGNORE as IGNORE
from ovss_refine.evaluation.items import Item, fingerprint
from ovss_refine.evaluation.own import own_classes
from ovss_refine.evaluation.published import Published
from ovss_refine.images.formats import IMAGE_SUFFIXES, left_out
from ovss_refine.labels import Labels, read_labels, read_lines

DESCRIPTIONS = Path(__file__).parent / "data_sets"
FOLDER, PAIRS = "folder", "pairs"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """A data set, wherever it is stored.

    Attributes:
        name: as on the command line.
        title: shown to users.
        names: M class names, in the order of the labels.
        images: folder of the images, relative to the root.
        masks: folder of the label maps.
        split: file with one image id a line; None: all images, sorted by path.
        image_suffix: what follows the id in the name of an image; any of several.
        mask_suffix: the same for its label map.
        other_mask_suffixes: suffixes of label maps with another meaning, named in messages.
        inside: folders under the root in which the data set may begin.
        recursive: images are in subfolders.
        first_is_ignored: raw value 0 is ignored and 1 is class 0.
        official_images: number of images of the official set; None: there is no official set.
        palette: "voc", "distinct", or M colours.
        prompts: for each family of prompts, the prompts by class name; True under "joined" if
            spaces in the other names are removed.
        methods: published settings of each method on this data set.
    """

    name: str
    title: str
    names: tuple[str, ...]
    images: str
    masks: str
    split: str | None = None
    image_suffix: tuple[str, ...]
    mask_suffix: str
    other_mask_suffixes: tuple[str, ...] = ()
    inside: tuple[str, ...] = ("",)
    recursive: bool = False
    first_is_ignored: bool = False
    official_images: int | None = None
    palette: str | tuple[tuple[int, int, int], ...] = "distinct"
    prompts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def M(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def own(self) -> bool:
        """Whether images and masks are the user's own, and so is the meaning of the values."""
        return self.name in (FOLDER, PAIRS)

    @property
    def highest(self) -> int:
        """Highest raw value of a mask that is a class."""
        return self.M if self.first_is_ignored else self.M - 1

    def locate(self, root: Path) -> Path:
        """Find the folder in which the data set begins; raises FileNotFoundError."""
        tried = [root / part for part in self.inside]
        for base in tried:
            if (base / self.images).is_dir():
                return base
        raise FileNotFoundError(
            f"`root` must hold {self.name} ({self.images}/ and {self.masks}/); looked in "
            f"{', '.join(f'`{path}`' for path in tried)}."
        )

    def items(self, root: Path) -> list[Item]:
        """List the images in the order of the split file, or all images sorted by path.

        Without a split file, a mask without an image is listed as well; reading it will fail.

        Raises:
            FileNotFoundError: if a folder or the split file is missing.
            ValueError: if there is nothing to list, or an id occurs twice.
        """
        base = self.locate(root)
        images, masks = base / self.images, base / self.masks
        if not masks.is_dir():
            raise FileNotFoundError(f"`root` must hold masks of {self.name}; `{masks}` is missing.")
        found = {} if self.split else self._ids(images, self.image_suffix)
        own = {} if self.split else self._ids(masks, (self.mask_suffix,))
        ids = self._split_ids(base) if self.split else sorted({*found, *own})
        if not ids:
            raise ValueError(
                f"`root` must hold images of {self.name}; got none in `{images}` that end in "
                f"{' or '.join(self.image_suffix)}. {self.left_out(root)}".rstrip()
            )
        suffix = dict.fromkeys(ids, self.image_suffix[0]) | found
        of_mask = dict.fromkeys(ids, self.mask_suffix) | own
        return [Item(id, images / f"{id}{suffix[id]}", masks / f"{id}{of_mask[id]}") for id in ids]

    def missing(self, items: Sequence[Item]) -> list[Path]:
        """List the files of some images that do not exist."""
        paths = [path for item in items for path in (item.image, item.mask)]
        return [path for path in paths if not path.is_file()]

    def fingerprint(self, items: Sequence[Item]) -> str:
        """Hash what identifies some images: the ids and the sizes of their files."""
        return fingerprint(items)

    def left_out(self, root: Path) -> str:
        """Name the image files that are beside the images, but not of the data set; "" if none."""
        if self.split:
            return ""
        folder = self.locate(root) / self.images
        return left_out(
            folder.rglob("*") if self.recursive else folder.iterdir(), self.image_suffix
        )

    def _split_ids(self, base: Path) -> list[str]:
        path = base / str(self.split)
        if not path.is_file():
            raise FileNotFoundError(f"`root` must hold the list of images `{path}`; it is missing.")
        ids = [line.strip() for line in read_lines(path) if line.strip()]
        if twice := [id for id, count in Counter(ids).items() if count > 1]:
            raise ValueError(f"`{path}` must list every image once; got {twice[0]!r} twice.")
        return ids

    def mask_ids(self, masks: Path) -> list[str]:
        """List the ids that have a mask."""
        return sorted(self._ids(masks, (self.mask_suffix,)))

    def image_ids(self, images: Path) -> list[str]:
        """List the ids that have an image."""
        return sorted(self._ids(images, self.image_suffix))

    def without_masks(self, base: Path) -> str:
        """Describe the masks under `base` if none has the right suffix; otherwise return ""."""
        masks = base / self.masks
        if self.mask_ids(masks):
            return ""
        names = sorted(path.name for path in masks.rglob("*") if path.is_file())
        wanted = f"`{masks}` must have masks that end in {self.mask_suffix}; got"
        for suffix in self.other_mask_suffixes:
            if others := [name for name in names if name.endswith(suffix)]:
                return (
                    f"{wanted} {len(others)} that end in {suffix}, `{others[0]}` the first. "
                    "`ovss-refine dataset convert` makes the missing masks."
                )
        return f"{wanted} none. {left_out(masks.rglob('*'), (self.mask_suffix,))}".rstrip()

    def _ids(self, folder: Path, suffixes: Sequence[str]) -> dict[str, str]:
        """Map the ids in a folder to the suffixes of their files."""
        found: dict[str, str] = {}
        for path in folder.rglob("*") if self.recursive else folder.iterdir():
            name = path.relative_to(folder).as_posix()
            for suffix in suffixes:
                if name.lower().endswith(suffix.lower()) and not path.name.startswith("."):
                    stem, own = name[: -len(suffix)], name[-len(suffix) :]
                    if stem in found:
                        raise ValueError(
                            f"`{folder}` must have one file for each image; got "
                            f"`{stem}{found[stem]}` and `{name}`."
                        )
                    found[stem] = own
        return found

    def method(self, name: str) -> dict[str, Any]:
        """Return the published settings of a method, or the default ones."""
        return dict(self.methods.get(name, self.methods.get("default", {})))

    def published(self, method: str) -> Published:
        """Return the published settings of a method on this data set.

        Args:
            method: such as "sclip"; most are there for every data set.

        Raises:
            ValueError: if that method has none.
        """
        known = sorted({*self.methods} - {"default"})
        if method not in known:
            raise ValueError(f"`method` must be one of {known}; got {method!r}.")
        return Published.of(self.methods[method])

    def labels(self, family: str = "names") -> Labels:
        """Return the classes with the prompts of a family of published methods.

        Args:
            family: "names", the data set's own; "sclip" (also NACLIP, SC-CLIP, CASS, RF-CLIP and
                LaVG), "clearclip" or "proxyclip"; on PASCAL VOC also
                "clip-dinoiser" and "groupvit".

        Raises:
            ValueError: if there is no such family.
        """
        known: dict[str, Mapping[str, Any]] = {"names": {}} | dict(self.prompts)
        if family not in known:
            raise ValueError(f"`prompts` must be one of {sorted(known)}; got {family!r}.")
        rows = known[family]
        joined = rows.get("joined") is True  # not a class of that name
        own = [[name.replace(" ", "") if joined else name] for name in self.names]
        found = (rows.get(name, row) for name, row in zip(self.names, own, strict=True))
        return Labels(self.names, tuple(tuple(row) for row in found))

    def prompts_of(self, family: str) -> list[str]:
        """Return the prompts of each class, "/" between synonyms; raises as `labels` does."""
        return list(self.labels(family).prompts)


def list_datasets() -> list[str]:
    """Return the names of the data sets, `folder` last."""
    return [*sorted(path.stem for path in DESCRIPTIONS.glob("*.toml")), FOLDER]


def load_dataset(
    name: str, *, names: str | Path | Labels | None = None, first_is_ignored: bool = False
) -> DataSet:
    """Read the description of a data set.

    Args:
        name: one of `list_datasets()`. "folder" is your own images/ and masks/.
        names: for "folder": the file of class names, as `read_labels` reads it, or `Labels`.
        first_is_ignored: for "folder": 0 in the masks is not labelled, and 1 is the first class.

    Raises:
        ValueError: on an unknown name, a missing or superfluous option, or invalid class names.
        FileNotFoundError: if there is no such file.

    Example:
        >>> dataset = load_dataset("voc21")
        >>> dataset.M, dataset.names[:2]
        (21, ('background', 'aeroplane'))
    """
    if name == FOLDER:
        return _own_folder(names, check_flag("first_is_ignored", first_is_ignored))
    for option, value in (("names", names), ("first_is_ignored", first_is_ignored or None)):
        if value is not None:
            raise ValueError(
                f"`{option}` must be left out with {name}, which has its own; got `{value}`."
            )
    path = DESCRIPTIONS / f"{name}.toml"
    if name not in list_datasets():
        near = difflib.get_close_matches(name, list_datasets(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"`dataset` must be one of {list_datasets()}; got {name!r}.{hint}")
    values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    values["image_suffix"] = (values["image_suffix"],)
    for key in ("names", "inside", "other_mask_suffixes"):
        values[key] = tuple(values.get(key, DataSet.__dataclass_fields__[key].default))
    if not isinstance(values["palette"], str):
        values["palette"] = tuple(tuple(colour) for colour in values["palette"])
    return DataSet(name=name, **values)


def load_from(
    name: str, root: Path, names: str | Path | Labels | None, first_is_ignored: bool
) -> DataSet:
    """Do `load_dataset`; for one's own folder, `names` is by default `names.txt` in the root."""
    if name == FOLDER and names is None:
        names = root / "names.txt"
    return load_dataset(name, names=names, first_is_ignored=first_is_ignored)


def _own_folder(names: str | Path | Labels | None, first_is_ignored: bool) -> DataSet:
    if names is None:
        raise ValueError(
            "`names` must be a file with one class name a line for the data set 'folder'; got None."
        )
    labels = names if isinstance(names, Labels) else read_labels(names)
    origin = "names" if isinstance(names, Labels) else str(names)
    return DataSet(
        **own_classes(labels, origin, first_is_ignored),
        name=FOLDER,
        title=f"your own images and masks, {len(labels)} classes",
        images="images",
        masks="masks",
        image_suffix=IMAGE_SUFFIXES,
        mask_suffix=".png",
    )
