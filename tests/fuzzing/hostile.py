"""Calls that break the rules: which must be refused, and under which names.

Axes: B images, K prompts, M classes, (h, w) grid of the logits, N patches, (H, W) pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch
from PIL import Image

from ovss_refine import Attention, Logits, RefineConfig, Refiner, joint_bilateral_upsample
from ovss_refine.attention import affinity


@dataclass(frozen=True)
class Attack:
    """One hostile call.

    Attributes:
        what: in words.
        function: what is called.
        args: its arguments.
        kwargs: its arguments by name.
        must_raise: whether it must be refused; else a valid result will do as well.
        names: the message must name one of these arguments.
    """

    what: str
    function: Callable
    args: tuple = ()
    kwargs: dict | None = None
    must_raise: bool = True
    names: tuple[str, ...] = ()


class Opaque:
    """A value that no argument takes."""

    def __repr__(self):
        return "Opaque()"


# No argument that is a tensor or an array takes any of these.
NOT_ARRAYS = [
    0,
    1.5,
    True,
    1j,
    b"x",
    (),
    {},
    {"a": 1},
    {1, 2},
    range(3),
    Opaque(),
    lambda: None,
    int,
    torch.float32,
    float("nan"),
    [[1.0, 2.0]],
    ["x"],
    [None],
    np.float32(1),
    np.array("x"),
    np.array(["x", "y"]),
    np.array([None, {}], dtype=object),
    np.array(["2020-01-01"], dtype="datetime64[D]"),
    np.zeros(3, dtype=[("a", "f4")]),
]
# Values for any option. Counts are tiny, or so large that nothing of the size can be made or done.
ABSURD = [
    *(1e308, -1e308, 1e200, 1e-200, 1e38, 1e-38, 5e-324, 1e-45, -1.0, 0.0, -0.0),
    *(float("nan"), float("inf"), float("-inf"), 0, 1, -1, 2**31, 2**63, 2**64, 10**30, -(10**30)),
    *(None, True, False, "", "x", "1", b"1", [], [1], (), (1,), {}, set(), 1j, Opaque(), int),
    *(Decimal(1), Fraction(1, 2), np.float64("nan"), np.float32("inf"), np.float16(0.5)),
    *(np.int64(2), np.uint8(255), np.bool_(True), np.array(1.0), np.array([1.0]), np.array("x")),
    *(torch.tensor(1.0), torch.tensor([1.0]), torch.tensor(float("nan")), torch.tensor(2)),
    *("kl", "fusion", "relative", "increment", "first_passage", ["kl"], ("kl", "kl")),
]
BACKGROUNDS = [
    *(
        0,
        0.5,
        "0,0.5",
        (0,),
        (0, 0.5, 1),
        [],
        {},
        (0.5, 0.5),
        (True, 0.5),
        ("0", 0.5),
        (None, None),
    ),
    *((-1, 0.5), (0, -0.1), (0, 1.1), (0, float("nan")), (0, float("inf")), (0, "0.5"), (0, [0.5])),
    *(
        (10**6, 0.5),
        (2**63, 0.5),
        (10**30, 0.5),
        (0, 10**400),
        (0, 1j),
        np.array([0, 2.0]),
        Opaque(),
    ),
]
INDICES = [
    *([], [-1], [0.5], [True], ["0"], [None], [[0]], [float("nan")], [10**30], [-(2**63)]),
    *("0", 0, 1.5, {}, {0}, Opaque(), b"0", [[0], [0, 1]], np.array([0.0]), np.array(["0"])),
    *(torch.tensor(0), torch.tensor([0.5]), torch.tensor([True]), torch.tensor([1j])),
]


def _one(rng, values):
    return values[int(rng.integers(len(values)))]


def _spoiled(rng, x, values):
    """Return a copy of a float tensor with one entry replaced."""
    x = x.clone()
    x.view(-1)[int(rng.integers(x.numel()))] = _one(rng, values)
    return x


def _reshaped(rng, x):
    """Return a float tensor in a wrong shape, with the name of it."""
    ways = {
        "without its last two axes": lambda: x[..., 0, 0],
        "with three more axes": lambda: x[None, None, None],
        "with an empty axis": lambda: x[..., :0],
        "with an empty first axis": lambda: x[:0],
        "flat": lambda: x.flatten(),
        "a number": lambda: x.sum(),
        "in another layout": lambda: x.to_sparse(),
        "without values": lambda: x.to("meta"),
        "of float8": lambda: x.to(torch.float8_e4m3fn),
        "of int64": lambda: x.long(),
        "of int8": lambda: x.to(torch.int8),
        "of bool": lambda: x.bool(),
        "complex": lambda: x.to(torch.complex64),
        "an integer array": lambda: x.long().numpy(),
        "an array of objects": lambda: x.float().numpy().astype(object),
        "a complex array": lambda: x.float().numpy().astype(complex),
        "an array of text": lambda: x.float().numpy().astype(str),
        "a list": lambda: x.flatten()[:3].tolist(),
    }
    name = _one(rng, list(ways))
    return name, ways[name]()


# Of these, the library may convert what it can.
CONVERTIBLE = {"in another layout", "of float8"}


def _refiner_call(case, names, what, *, must_raise=True, **changed):
    options = {**case.options, **changed.pop("options", {})}

    def call(**inputs):
        return Refiner(**options, keep_scores=True)(**inputs)

    return Attack(what, call, (), {**case.inputs(), **changed}, must_raise, names)


LOGITS_NAMES = ("logits", "values")
ATTN_NAMES = ("attn", "weights")


def wrong_type(rng, case):
    """Put a value of another type in the place of an input."""
    name, known = _one(
        rng, [("logits", LOGITS_NAMES), ("attn", ATTN_NAMES), ("image", ("image", "image[0]"))]
    )
    value = _one(rng, [*NOT_ARRAYS, None])
    return _refiner_call(case, known, f"{name}={value!r:.40}", **{name: value})


def wrong_array(rng, case):
    """Change the shape, layout or element type of an input."""
    name, known = _one(rng, [("logits", LOGITS_NAMES), ("attn", ATTN_NAMES)])
    values = case.logits if name == "logits" else case.weights
    what, value = _reshaped(rng, values.float())
    must = what not in CONVERTIBLE
    # Fewer or more axes may be another input's fault as well.
    names = () if "axes" in what else known
    return _refiner_call(case, names, f"{name} {what}", must_raise=must, **{name: value})


def wrong_values(rng, case):
    """Put a value that is not finite, too large or negative into an input."""
    bad = [float("nan"), float("inf"), float("-inf")]
    ways = {
        "logits": lambda: (_spoiled(rng, case.logits, bad), LOGITS_NAMES),
        "attn": lambda: (_spoiled(rng, case.weights, [*bad, -0.5, 3.0]), ATTN_NAMES),
        "image": lambda: (_spoiled(rng, case.image.float() / 300, [*bad, -1.0, 255.0]), ("image",)),
    }
    name = _one(rng, list(ways))
    value, names = ways[name]()
    return _refiner_call(case, names, f"{name} with one bad value", **{name: value})


def huge_logits(rng, case):
    """Use logits near the ends of their type."""
    size = _one(rng, [1e300, 1e38, 3e38, 1e30, 1e-300, 1e-40])
    logits = torch.sign(case.logits.double() - case.logits.double().mean()) * size
    return _refiner_call(case, (), f"logits of {size:g}", must_raise=False, logits=logits)


def transposed_logits(rng, case):
    """Put the classes last, or fold the grid into one axis."""
    _, K, h, w = case.logits.shape
    value = _one(rng, [case.logits.permute(0, 2, 3, 1), case.logits.flatten(2)])
    # Sizes may happen to fit.
    fits = value.ndim == 4 and (value.shape[1] == K or h * w == 1)
    names = ("logits", "prompt_index", "background", "attn")
    what = f"logits {list(value.shape)}"
    return _refiner_call(case, names, what, must_raise=value.ndim == 3 and not fits, logits=value)


def bare_attention(rng, case):
    """Pass attention that is not that of the patches, without a grid."""
    N = case.grid[0] * case.grid[1]
    extra = int(rng.integers(1, 9))
    more = torch.full((case.B, N + extra, N + extra), 1 / (N + extra))
    ways = {
        "not square": more[:, :N],
        "not divided": torch.rand(case.B, N, N) + 2,
        "empty rows": torch.zeros(case.B, N, N),
        "raw scores": torch.full((case.B, N, N), -4.0),
        "of another batch": torch.full((case.B + 1, N, N), 1 / N),
    }
    what = _one(rng, list(ways))
    return _refiner_call(case, ATTN_NAMES, f"attn {what}", attn=ways[what])


def wrong_image(rng, case):
    """Pass an image of another form."""
    B, H, W = case.B, 6, 5
    ways = {
        "of 0 to 255": torch.full((B, 3, H, W), 255.0),
        "with its channels last": torch.rand(B, H, W, 3),
        "with alpha": torch.rand(B, 4, H, W),
        "grey": torch.rand(B, 1, H, W),
        "without pixels": torch.rand(B, 3, 0, W),
        "of int64": torch.ones(B, 3, H, W, dtype=torch.int64),
        "of bool": torch.ones(B, 3, H, W, dtype=torch.bool),
        "complex": torch.ones(B, 3, H, W, dtype=torch.complex64),
        "of uint8, all 1": torch.ones(B, 3, H, W, dtype=torch.uint8),
        "of another batch": torch.rand(B + 1, 3, H, W),
        "an array of 0 to 255": np.full((B, H, W, 3), 255.0),
        "an array of int64": np.ones((B, H, W, 3), dtype=np.int64),
        "an array with its channels first": np.ones((B, 3, H, W)),
        "an array of 1e300": np.full((B, H, W, 3), 1e300),
        "an empty list": [],
        "a list of lists": [[torch.rand(3, H, W)]] * B,
        "a list of two sizes": [torch.rand(3, H, W), torch.rand(3, W, H)],
        "a list with None": [None] * B,
        "a list of images of no pixels": [torch.rand(3, 0, 0)] * B,
        "a PIL image without pixels": Image.new("RGB", (0, 0)),
        "a missing file": "no/such/file.png",
        "an impossible path": "a\0b.png",
        "an endless path": "x" * 5000,
        "a folder": "/",
        "an empty path": "",
    }
    what = _one(rng, list(ways))
    return _refiner_call(case, (), f"image {what}", image=ways[what])


def wrong_prompt_index(rng, case):
    """Pass classes of the prompts that are none."""
    value = _one(rng, INDICES)
    K = case.logits.shape[1]
    if isinstance(value, list) and len(value) == 1:
        value = value * K
    return _refiner_call(case, ("prompt_index",), f"prompt_index={value!r:.40}", prompt_index=value)


def huge_prompt_index(rng, case):
    """Name a class far beyond the prompts."""
    K = case.logits.shape[1]
    value = [0] * (K - 1) + [_one(rng, [10**9, 10**12, 2**62, 2**63 - 1])]
    options = {"background": None}
    return _refiner_call(
        case, ("prompt_index",), "a class beyond 10**9", prompt_index=value, options=options
    )


def absurd_option(rng, case):
    """Give an option any value at all."""
    name = _one(rng, [one.name for one in fields(RefineConfig) if one.name != "keep_scores"])
    value = _one(rng, BACKGROUNDS if name == "background" else ABSURD)
    options = {name: value}
    return _refiner_call(case, (name,), f"{name}={value!r:.40}", must_raise=False, options=options)


def absurd_options(rng, case):
    """Give several options extreme numbers at once."""
    names = [one.name for one in fields(RefineConfig) if isinstance(one.default, float)]
    numbers = [1e308, 1e200, 1e38, 1e-38, 1e-200, 5e-324, 1.0, 0.5, 1 - 1e-16, 1e-9]
    options = {name: _one(rng, numbers) for name in names if rng.random() < 0.5}
    what = f"options {options}"
    return _refiner_call(case, tuple(options), what, must_raise=False, options=options)


def unknown_option(rng, case):
    """Misspell an option."""
    name = _one(rng, ["taus", "Mode", "nmsthreshold", "sigma", "x", "keep", "epsillon", "_", "a b"])
    return Attack(f"an option {name!r}", Refiner, (), {name: 1}, True, (name,))


def wrong_attention(rng, case):
    """Make an `Attention` that is none."""
    N = case.grid[0] * case.grid[1]
    weights = case.weights
    grids = [
        *(
            (N, 2),
            (0, N),
            (-1, -N),
            (N,),
            (N, 1, 1),
            (),
            None,
            0,
            "ab",
            (N + 0.5, 1),
            ("1", str(N)),
        ),
        *({}, (None, None), (float("nan"), 1), (True, N + 1), [[N, 1]], Opaque(), (1e308, 1)),
    ]
    ways = [
        (lambda g: Attack(f"grid={g!r:.40}", Attention, (weights, g), {}, True, ("grid",)))(
            _one(rng, grids)
        ),
        (lambda v: Attack(f"weights={v!r:.40}", Attention, (v, case.grid), {}, True, ATTN_NAMES))(
            _one(rng, [*NOT_ARRAYS, None])
        ),
        Attack("a stack of nothing", Attention.stack, ([],), {}, True, ("maps",)),
        Attack("a stack of numbers", Attention.stack, ([1, 2],), {}, True, ("maps",)),
        Attack("a stack of None", Attention.stack, (None,), {}, True, ("maps",)),
    ]
    return _one(rng, ways)


def wrong_factors(rng, case):
    """Make an `Attention` of queries and keys that do not fit."""
    N, grid = case.grid[0] * case.grid[1], case.grid
    q = torch.rand(case.B, 2, N, 3)
    ways = [
        ("q of other tokens", (torch.rand(case.B, 2, N + 1, 3), q, 1.0, grid), ("k", "q", "grid")),
        ("k of other channels", (q, q[..., :2], 1.0, grid), ("k",)),
        ("q of NaN", (_spoiled(rng, q, [float("nan"), float("inf")]), q, 1.0, grid), ("q",)),
        ("k of integers", (q, q.long(), 1.0, grid), ("k",)),
        ("q of an empty head", (q[..., :0], q[..., :0], 1.0, grid), ("q",)),
        ("q a number", (1.0, q, 1.0, grid), ("q",)),
        ("k None", (q, None, 1.0, grid), ("k",)),
        ("an absurd scale", (q, q, _one(rng, [*ABSURD, 1e308, 1e39]), grid), ("scale", "q", "k")),
        ("another grid", (q, q, 1.0, (N, 2)), ("grid",)),
    ]
    what, args, names = _one(rng, ways)

    def call(*args):
        attention = Attention.from_factors(*args)
        options = replace(RefineConfig(), mode=case.options["mode"])
        return Refiner(options.mode, keep_scores=True)(
            case.logits, attention, case.image, prompt_index=case.prompt_index
        )

    return Attack(what, call, args, {}, what != "an absurd scale", names)


def wrong_logits(rng, case):
    """Make `Logits` that are none."""
    K = case.logits.shape[1]
    ways = [
        ({"scale": _one(rng, ABSURD)}, False, ("scale", "logit_scale")),
        ({"prompt_index": _one(rng, INDICES)}, K > 1, ("prompt_index",)),
        ({"names": ["a"] * (K + 1)}, True, ("names",)),
        ({"names": [1] * K}, True, ("names",)),
        ({"names": 5}, True, ("names",)),
        ({"names": None}, True, ("names",)),
        ({"names": [[]] * K}, True, ("names",)),
        ({"values": _one(rng, [*NOT_ARRAYS, None])}, True, ("values",)),
    ]
    change, must, names = _one(rng, ways)

    def call(**fields):
        logits = Logits(**fields)
        return Refiner(case.options["mode"], keep_scores=True)(logits, case.attention, case.image)

    kwargs = {"values": case.logits, **change}
    return Attack(f"Logits({change!r:.60})", call, (), kwargs, must, names)


def wrong_upsampling(rng, case):
    """Upsample with arguments that do not fit."""
    low, image = torch.rand(1, 2, 3, 4), torch.rand(1, 3, 6, 5)
    ways = [
        ((_one(rng, [*NOT_ARRAYS, None]), image), {}, True, ("low",)),
        ((low, _one(rng, [*NOT_ARRAYS, None])), {}, True, ("image",)),
        ((_spoiled(rng, low, [float("nan"), float("inf")]), image), {}, True, ("low",)),
        ((low, image[:, :2]), {}, True, ("image",)),
        ((low.repeat(2, 1, 1, 1), image), {}, True, ("image",)),
        ((low.long(), image), {}, True, ("low",)),
        ((low.double() * 1e300, image), {}, False, ("low",)),
        *(
            ((low, image), {name: _one(rng, ABSURD)}, False, (name,))
            for name in ("sigma_spatial", "sigma_range", "radius")
        ),
    ]
    args, kwargs, must, names = _one(rng, ways)
    what = f"upsampling {args[0]!r:.30} {kwargs}"
    return Attack(what, joint_bilateral_upsample, args, kwargs, must, names)


def wrong_affinity(rng, case):
    """Make an affinity of features that are none."""
    features = torch.rand(2, 3, 4)
    ways = [
        ((_one(rng, [*NOT_ARRAYS, None]), 0.1), True, ("features",)),
        ((_spoiled(rng, features, [float("nan"), float("inf")]), 0.1), True, ("features",)),
        ((features.long(), 0.1), True, ("features",)),
        ((features[0], 0.1), True, ("features",)),
        ((features * 0, 0.1), False, ("features",)),
        ((features.double() * 1e300, 0.1), False, ("features",)),
        ((features, _one(rng, ABSURD)), False, ("temperature",)),
    ]
    args, must, names = _one(rng, ways)
    return Attack(f"affinity {args[0]!r:.40} {args[1]!r:.20}", affinity, args, {}, must, names)


ATTACKS = (
    wrong_type,
    wrong_array,
    wrong_values,
    huge_logits,
    transposed_logits,
    bare_attention,
    wrong_image,
    wrong_prompt_index,
    huge_prompt_index,
    absurd_option,
    absurd_options,
    unknown_option,
    wrong_attention,
    wrong_factors,
    wrong_logits,
    wrong_upsampling,
    wrong_affinity,
)
