"""The kernels for a GPU: in the interpreter, compiled, and when they are used."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch

from ovss_refine import Attention
from ovss_refine.method import markov, upsample_gpu
from ovss_refine.tensors import compiled, gpu_chain, gpu_device

needs_triton = pytest.mark.skipif(
    not gpu_device.triton_is_known(),
    reason="no Triton, or one before 3.7: it comes with torch for CUDA",
)

KNOWN = gpu_device.triton_is_known
# Each in one process: to import what they need takes longer than most of them.
CASES = {
    "scaling": [
        "scaling(1)",
        "scaling(2)",
        "scaling(17, groups=2)",
        "scaling(8, B=2, rounds=1)",
        "scaling(9, dtype='float16')",
        "scaling(9, dtype='bfloat16')",
        "unformed(3)",
        "sinks(1e-31)",
        "sinks(1e-42)",
    ],
    "walks": [
        "random_walk(1, 1)",
        "random_walk(2, 2)",
        "random_walk(17, 21, block=16)",
        "random_walk(11, 2, B=2, tau=0.7, every=4)",
        "random_walk(20, 3, max_steps=1, tau=0.9)",
        "random_walk(9, 1, max_steps=30, every=100)",
        "unreachable(1)",
        "unreachable(4)",
        "long_walk()",
    ],
    "upsampling": [
        "upsampling(1, (1, 1), (5, 7))",
        "upsampling(2, (3, 5), (13, 21), B=2, radius=1)",
        "upsampling(5, (7, 6), (10, 50), radius=0, rows=3)",
        "upsampling(21, (4, 3), (9, 13))",
        "upsampling(3, (9, 8), (5, 4), radius=3)",
        "upsampling(2, (2, 3), (9, 8), sigma=0.01)",
        "odd_labels()",
    ],
    "refinement": [
        "refinement('maximum_velocity')",
        "refinement('maximum_velocity', 'float16')",
        "refinement('fusion')",
        "refinement('anchored')",
    ],
}


@needs_triton
@pytest.mark.slow("a kernel takes a millisecond for each of its operations there")
@pytest.mark.parametrize("what", CASES)
def test_in_the_interpreter(what, forks):
    calls = (f"kernels_checked.{case}" for case in CASES[what])
    interpret = "import os; os.environ['TRITON_INTERPRET'] = '1'"
    forks.printed("\n".join([interpret, "import kernels_checked", *calls]))


@needs_triton
@pytest.mark.cuda
@pytest.mark.parametrize("what", [*CASES, "at full size"])
def test_on_a_gpu(what, forks):
    calls = (f"kernels_checked.{case}" for case in CASES.get(what, ["at_full_size()"]))
    forks.printed("\n".join(["import kernels_checked", *calls]))


@needs_triton
@pytest.mark.slow("compiles 23 kernels, each in a third of a second")
@pytest.mark.parametrize("capability", [80, 90])
def test_compiled_as_they_are_called_without_a_gpu(capability, forks, tmp_path):
    kept = f"import os; os.environ['TRITON_CACHE_DIR'] = {str(tmp_path)!r}"
    forks.printed(f"{kept}; import kernels_compiled; kernels_compiled.compile_all({capability})")


@pytest.fixture
def capable(monkeypatch):
    """A machine with everything that the kernels ask for."""
    monkeypatch.setattr(gpu_device, "capable", lambda device: True)
    monkeypatch.setattr(gpu_device, "triton_is_known", lambda: True)
    monkeypatch.setattr(gpu_device, "load_loops", lambda *_: object())


def test_what_the_kernels_take(capable):
    x = torch.ones(2, 4, 4)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert gpu_chain.can_scale(x.to(dtype))
    assert not gpu_chain.can_scale(x.double())
    assert gpu_chain.can_scale(torch.ones(()).expand(1, 1 << 14, 1 << 14))
    assert not gpu_chain.can_scale(torch.ones(()).expand(1, 1 << 15, 1 << 15))
    assert gpu_chain.can_walk(x, x)
    assert not gpu_chain.can_walk(x, x.half())
    assert not gpu_chain.can_walk(x.double(), x.double())
    assert upsample_gpu.can_upsample(x, x)
    assert not upsample_gpu.can_upsample(x.half(), x.half())
    assert not gpu_chain.can_scale(torch.nn.Parameter(x))
    x.requires_grad_()
    assert not upsample_gpu.can_upsample(x.detach(), x)
    with torch.no_grad():
        assert upsample_gpu.can_upsample(x.detach(), x)


def test_compiled_and_exported_graphs_do_without(capable):
    x = torch.ones(2, 2)
    assert gpu_chain.can_scale(x)
    graph = torch.compile(lambda x: x + gpu_chain.can_scale(x), backend="eager")
    assert torch.equal(graph(x), x)

    class Module(torch.nn.Module):
        def forward(self, x):
            return x + gpu_chain.can_scale(x)

    assert torch.equal(torch.export.export(Module(), (x,)).module()(x), x)


def test_only_where_triton_works(capable, monkeypatch):
    monkeypatch.setattr(gpu_device, "load_loops", lambda name, _: None)
    assert not gpu_chain.can_scale(torch.ones(2, 2))


@pytest.mark.parametrize(
    ("device", "capability", "hip", "expected"),
    [
        ("cuda:0", (8, 0), None, True),
        ("cuda:1", (9, 0), None, True),
        ("cuda:0", (7, 5), None, False),
        ("cuda:0", (9, 0), "6.4", False),
        ("cpu", (9, 0), None, False),
        ("mps", (9, 0), None, False),
        ("meta", (9, 0), None, False),
    ],
)
def test_capable_devices(device, capability, hip, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert gpu_device.capable.__wrapped__(torch.device(device)) is expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [("3.6.0", False), ("3.7.0", True), ("3.10.1", True), ("4.0.0+git1", True), (None, False)],
)
def test_known_tritons(found, expected, capable, monkeypatch):
    def version(name):
        assert name == "triton"
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(gpu_device, "version", version)
    monkeypatch.setattr(gpu_device, "triton_is_known", KNOWN.__wrapped__)
    assert KNOWN.__wrapped__() is expected
    assert gpu_chain.can_scale(torch.ones(2, 2)) is expected


def test_factors_are_not_formed_for_them(capable, monkeypatch):
    monkeypatch.setattr(gpu_chain, "scaled", None)
    q = torch.rand(1, 4, 2)
    held = Attention.from_factors(q, q, 1.0, (2, 2)).batched()
    assert markov.doubly_stochastic(held, 3, many_steps=True).T is None


def test_tables_are_kept_and_usable_after_inference_mode():
    upsample_gpu.pixel_table.cache_clear()
    given = 9, 4, 1.0, 2, torch.device("cpu")
    with torch.inference_mode():
        cell, weights = upsample_gpu.pixel_table(*given)
    assert not cell.is_inference()
    assert not weights.is_inference()
    assert upsample_gpu.pixel_table(*given)[0] is cell
    assert upsample_gpu.pixel_table(10, *given[1:])[0] is not cell
    assert cell.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert weights.shape == (5, 9)
    assert upsample_gpu.pixel_table.cache_info().maxsize == 256


def test_a_triton_that_does_not_work_is_a_warning(forks, tmp_path):
    (tmp_path / "triton.py").write_text("raise ImportError('no compiler')")
    code = (
        f"import sys, warnings; sys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.modules.pop('triton', None)\n"
        "from ovss_refine.tensors import gpu_device\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    found = [gpu_device.load_loops(gpu_device.LOOPS, 'triton') for _ in range(2)]\n"
        "print(found, *[w.message for w in caught])"
    )
    assert forks.printed(code) == (
        "[None, None] triton is installed and does not work, so torch does its work, which is "
        "slower: ImportError: no compiler"
    )


def test_torch_alone_never_loads_them(forks):
    code = (
        "import sys, torch; from ovss_refine.tensors import gpu_chain\n"
        "print(gpu_chain.can_scale(torch.ones(2, 2)))\n"
        "print([m for m in sys.modules if m.endswith(('gpu_loops', 'upsample_triton'))])"
    )
    assert forks.printed(code) == "False\n[]"
    assert compiled.load_loops("ovss_refine.tensors.gpu_loops", "no_such_compiler") is None
