"""Which files are images, by their names, and what to do about those that cannot be read.

Imports neither Pillow nor NumPy, because the command line needs the suffixes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path


def _suffixes(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".avif")
HEIF_SUFFIXES = _suffixes("heic heics heif heifs hif avci avcs")
# Pillow takes many of these for TIFF files, and reads a small preview.
RAW_SUFFIXES = _suffixes(
    "3fr ari arw bay cr2 cr3 crw dcr dcs dng erf fff gpr iiq k25 kdc mdc mef mos mrw nef nrw orf "
    "ori pef ptx r3d raf raw rw2 rwl sr2 srf srw x3f"
)
OTHER_SUFFIXES = _suffixes(
    "apng avifs bpg cin cur dcm dcx dds dib dpx emf eps exr fit fits flif fts gif hdp hdr icns ico "
    "iff j2c j2k jfi jfif jif jng jp2 jpc jpe jpf jpm jpx jxl jxr ktx mng mpo pam pbm pcx pfm pgm "
    "pic pict pnm ppm ps psb psd qoi ras rgb rgba rgbe sgi svg svgz tga wbmp wdp wmf xbm xcf xpm"
)
IMAGE_LIKE = HEIF_SUFFIXES | RAW_SUFFIXES | OTHER_SUFFIXES | {*IMAGE_SUFFIXES}
HEIF_BRANDS = (b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")


def is_image_file(path: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> bool:
    """Whether a file has the suffix of an image; hidden files and folders do not count.

    A broken link counts: reading it fails, and the failure is reported.
    """
    hidden = path.name.startswith(".")  # macOS puts such files next to every file that it copies
    return path.suffix.lower() in suffixes and not hidden and not path.is_dir()


def by_stem(paths: Iterable[Path]) -> list[Path]:
    """Sort files by folder, then by stem."""
    return sorted(paths, key=lambda path: (path.parent, path.stem, path.name))


def pick_images(paths: Iterable[Path]) -> tuple[list[Path], str]:
    """Return the images among `paths`, by `by_stem`, and what `left_out` says of the others."""
    every = list(paths)
    return by_stem(filter(is_image_file, every)), left_out(every)


def left_out(paths: Iterable[Path], ends: Sequence[str] = IMAGE_SUFFIXES) -> str:
    """Count and name the image files that do not end in one of `ends`; "" if there are none."""
    ends = tuple(end.lower() for end in ends)
    rest = (path for path in paths if not path.name.lower().endswith(ends))
    lost = by_stem(path for path in rest if is_image_file(path, IMAGE_LIKE))
    if not lost:
        return ""
    kinds = Counter(path.suffix.lower() for path in lost)
    counts = ", ".join(f"{suffix} ({kinds[suffix]})" for suffix in sorted(kinds))
    files = "1 image file is" if len(lost) == 1 else f"{len(lost)} image files are"
    advice = dict.fromkeys(fix for path in lost if (fix := how_to_read(path)))
    return (
        f"{files} left out, `{lost[0]}` the first: {counts}. Only files that end in "
        f"{', '.join(ends)} are taken.{''.join(advice)}"
    )


def how_to_read(path: Path, start: bytes = b"") -> str:
    """Say what an image that cannot be read needs; "" if nothing is known to help.

    Args:
        path: the file; only its suffix is used.
        start: its first 12 bytes, which tell what a file with another format's suffix is.
    """
    suffix, brand = path.suffix.lower(), start[8:12] if start[4:8] == b"ftyp" else b""
    if suffix in HEIF_SUFFIXES or brand in HEIF_BRANDS:
        return (
            " HEIC and HEIF are not supported: convert to JPEG or PNG first, with `heif-convert "
            "photo.heic photo.jpg` (libheif) or `sips -s format jpeg` (macOS)."
        )
    if suffix in RAW_SUFFIXES:
        return " A camera's raw files are not supported: export them as JPEG, PNG or TIFF first."
    if suffix == ".avif" or brand == b"avif":
        return " A sound AVIF file needs Pillow 11.3 or later."
    return " Convert it to JPEG or PNG first." if suffix in OTHER_SUFFIXES else ""
