"""One call of the library, watched: what it raises, changes, warns of, and how long it takes."""

import random
import re
import resource
import signal
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass

import numpy as np
import torch

# A call of these sizes takes milliseconds; one that takes this long would not have ended.
SECONDS = 5.0
# What a call may allocate beyond what the process has. A larger request must be refused by a check,
# and must not take the memory of others where it is not.
BYTES = 1 << 30
GRAMMAR = re.compile(r"`[^`]+`[^;]* must .+; ", re.DOTALL)
# The only warnings that random inputs may cause.
LOOKALIKES = (
    "`logits` are all in [-1, 1] like cosine similarities",
    "`logits` look like probabilities",
)


class HangError(BaseException):
    """Raised inside a call that took too long; no handler of the library may catch it."""


@dataclass
class Report:
    """What was checked in one case or in many.

    Attributes:
        checks: how many of each kind.
        explained: how many differences of each kind were the case's own: rounding moves the float64
            reference as far, as where two classes tie.
        failures: [(seed, kind, what)].
        traits: how many cases had each.
    """

    checks: Counter = field(default_factory=Counter)
    explained: Counter = field(default_factory=Counter)
    failures: list = field(default_factory=list)
    traits: Counter = field(default_factory=Counter)

    def add(self, other):
        """Add the numbers of another report."""
        for name in ("checks", "explained", "traits"):
            getattr(self, name).update(getattr(other, name))
        self.failures += other.failures


class Probe:
    """Makes the calls of one case and reports what they do."""

    def __init__(self, seed):
        self.seed, self.report = seed, Report()

    def expect(self, kind, ok, what):
        """Count one check, and report `what` unless it is `ok`."""
        self.report.checks[kind] += 1
        if not ok:
            self.report.failures.append((self.seed, kind, what() if callable(what) else what))
        return ok

    def call(self, function, *args, **kwargs):
        """Call, and return (result, None) or (None, what it raised)."""
        state, inputs = global_state(), list(frozen((args, kwargs)))
        result = error = None
        with warnings.catch_warnings(record=True) as seen, limits():
            warnings.simplefilter("always")
            filters = list(warnings.filters)
            try:
                result = function(*args, **kwargs)
            except (Exception, HangError) as caught:
                error = caught
            unfiltered = filters == list(warnings.filters)
        after = global_state()
        changed = [f"{name}: {after[name]}" for name in state if state[name] != after[name]]
        changed += ["warnings.filters"] * (not unfiltered)
        self.expect("global state", not changed, lambda: f"changed {changed[0][:200]}")
        same = inputs == list(frozen((args, kwargs)))
        self.expect("inputs unchanged", same, "an input was changed")
        wrong = [str(w.message) for w in seen if not str(w.message).startswith(LOOKALIKES)]
        self.expect("warnings", not wrong, lambda: f"warned {wrong[0]!r}")
        return result, error

    def valid(self, function, *args, **kwargs):
        """Make a call that must succeed; return the result, or None where it did not."""
        result, error = self.call(function, *args, **kwargs)
        self.expect("valid calls", error is None, lambda: f"raised {shown(error)}")
        return result


def shown(error):
    """Show an exception on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def frozen(x):
    """List the bytes of all tensors and arrays in `x`, and the other values as they are shown."""
    if isinstance(x, torch.Tensor):
        plain = x.layout == torch.strided and not x.is_meta
        yield str((x.dtype, x.shape, x.requires_grad))
        if plain:
            flat = x.detach().flatten().clone(memory_format=torch.contiguous_format)
            yield flat.view(torch.uint8).numpy().tobytes()
    elif isinstance(x, np.ndarray):
        yield str((x.dtype, x.shape, x.flags.writeable))
        yield repr(x.tolist()) if x.dtype == object else x.tobytes()
    elif isinstance(x, dict):
        yield from frozen([*x.keys(), *x.values()])
    elif isinstance(x, (list, tuple)) and not all(isinstance(one, (int, str)) for one in x):
        for one in x:
            yield from frozen(one)
    elif is_dataclass(x) and not isinstance(x, type):
        yield from frozen([getattr(x, one.name) for one in fields(x)])
    else:
        yield repr(x)


def global_state():
    """Everything that a call must leave as it was."""
    backends, cuda, cpu = torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "NumPy's random state": np.random.get_state()[1].tobytes(),
        "Python's random state": random.getstate(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "cudnn": (
            backends.cudnn.enabled,
            backends.cudnn.benchmark,
            backends.cudnn.deterministic,
            backends.cudnn.allow_tf32,
        ),
        "matmul": (
            cuda.allow_tf32,
            cuda.allow_fp16_reduced_precision_reduction,
            cuda.allow_bf16_reduced_precision_reduction,
            torch.get_float32_matmul_precision(),
        ),
        "mkldnn": (cpu.enabled, cpu.deterministic, cpu.allow_tf32),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "denormals": float(torch.tensor(1e-39, dtype=torch.float32, device="cpu") * 1),
        "NumPy's errors": str(np.geterr()),
    }


@contextmanager
def limits():
    """Stop a call that takes too long, and refuse it more memory than any needs."""

    def stop(*_):
        raise HangError(f"not ended after {SECONDS:g} s")

    with open("/proc/self/statm") as file:  # noqa: PTH123 - once per call: the fast way
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
