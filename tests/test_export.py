"""The graph equals `refine`: every mode, through torch.export and onnxruntime, in other sizes."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import RANGE_TOLERANCE, TORCH
from ovss_refine import Attention, RefineConfig, refine
from ovss_refine.attention import affinity
from ovss_refine.config import PAPER
from ovss_refine.export import EXAMPLE, OPSET, OUTPUTS, RefineModule, export_onnx, export_program
from ovss_refine.tensors.tracing import repeat
from strategies import block_attention

# Every mode, and among them every option that decides which classes go on, from where, and how they
# are upsampled: an export takes seconds, so that there is none for options alone.
GATES = {"nms": "absolute", "nms_threshold": 0.8, "min_area": 0.15, "pre_propagation": 1}
SPREAD = {"sigma_spatial": 0.7, "sigma_range": 0.03, "radius": 1}
MODES = {
    "kl": {"mode": "kl", "upsampler": "bilinear", **GATES},
    "optimal path": {"mode": "optimal_path"},
    "maximum velocity": {"mode": "maximum_velocity"},
    "calibrated": {
        "logit_scale": "auto",
        "seed_quantile": 0.3,
        "vote": 0.01,
        "confidence_power": 0.4,
    },
    "the paper's": PAPER,
    "increment": {"mode": "maximum_velocity", "criterion": "increment"},
    "fusion": {"mode": "fusion"},
    "propagation": {"mode": "propagation", "background": (1, 0.6), **SPREAD},
    "anchored": {"mode": "anchored", "upsampler": "guided"},
}
# Sizes (B, K, logits, attention, pixels) that differ from those traced and from each other: grids
# that fit and that do not, one patch a row, one class kept, more patches than pixels.
SIZES = {
    "even": (1, 4, (6, 7), (6, 7), (48, 56)),
    "uneven": (3, 9, (4, 11), (7, 8), (50, 37)),
    "one row": (2, 2, (3, 5), (1, 13), (9, 40)),
}
NARROW = (1, 3, (4, 4), (9, 12), (5, 7))  # fewer pixels than patches
# Fewer than by default, because a graph has them one after the other, and tracing takes its time.
FEW = {"ipf_rounds": 2}
SLOW = pytest.mark.slow("an ONNX export takes ten seconds, whatever the sizes")


def problem(B, K, logits, grid, pixels, seed=0):
    """Confident logits of smooth regions, some classes nowhere, and attention of features."""
    generator = torch.Generator().manual_seed(seed)
    scores = 4 * torch.randn(B, K, *logits, generator=generator)
    if K > 3:
        scores[:, 2] -= 30  # wins nowhere
        scores[0, 3] -= 30  # wins in no first image: the images keep different numbers
    attention = affinity(torch.randn(B, 8, *grid, generator=generator), 0.3)
    return scores, attention, torch.rand(B, 3, *pixels, generator=generator)


def outvoted():
    """Two images; in the first, class 2 has two patches in an unsure part of class 0's object."""
    logits = torch.zeros(2, 3, 60)
    logits[:, 0, :50], logits[:, 1, 50:], logits[:, 2] = 4.0, 2.0, -5.0
    logits[:, 0, 3:10], logits[0, 2, 3:10] = 2.0, 1.0
    logits[0, 2, 3:5] = 4.0
    weights = 0.98 * block_attention([3, 7, 40, 10]) + 0.02 / 60
    image = torch.rand(2, 3, 36, 60, generator=torch.Generator().manual_seed(0))
    return logits.view(2, 3, 6, 10), Attention(weights.expand(2, 60, 60), (6, 10)), image


def inputs_of(logits, attention, image, prompt_index=None):
    B, gh, gw = len(logits), *attention.grid
    inputs = {
        "logits": logits,
        "attention": attention.weights.reshape(B, gh, gw, gh, gw),
        "image": image,
    }
    if prompt_index is not None:
        inputs["prompt_index"] = torch.tensor(prompt_index)
    return inputs


def assert_equal(actual, problem, config, prompt_index=None):
    """Compare a graph's outputs with what `refine` gives, as the names of `OUTPUTS` say."""
    full = refine(*problem, replace(config, keep_scores=True), prompt_index=prompt_index)
    actual = dict(zip(OUTPUTS, actual, strict=False))
    assert ("scores" in actual) == config.keep_scores
    for name in ("kept", "seeds"):
        np.testing.assert_array_equal(np.asarray(actual[name]), getattr(full, name).numpy(), name)
    for name in ("discrepancy", "scores"):
        if name in actual:
            assert_same_map(np.asarray(actual[name]), getattr(full, name).numpy())
    labels = np.asarray(actual["labels"])
    assert labels.dtype == np.int64
    assert labels.shape == tuple(full.labels.shape)
    best = np.sort(full.scores.nan_to_num(neginf=-1e30).numpy(), axis=1)[:, -2:]
    clear = best[:, -1] - best[:, 0] > 1e-3 * np.abs(best[:, -1]) + 1e-6
    np.testing.assert_array_equal(labels[clear], full.labels.numpy()[clear])
    # Random labels of K classes would pass where hardly a pixel is clear.
    assert clear.mean() > 0.5 or config.criterion == "increment"


def assert_same_map(actual, expected):
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(actual), finite)
    actual, expected = actual[finite], expected[finite]
    span = max(np.ptp(expected), 0.1 * np.abs(expected).max(), 1e-3)
    assert np.abs(actual - expected).max() <= RANGE_TOLERANCE * span


class TestModule:
    """The module itself, run as it is."""

    @pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
    @pytest.mark.parametrize("early_stop", [True, False])
    @pytest.mark.parametrize("size", [*SIZES.values(), NARROW], ids=[*SIZES, "narrow"])
    def test_equals_refine(self, mode, early_stop, size):
        config = RefineConfig(**mode, keep_scores=True)
        given = problem(*size)
        got = RefineModule(config, early_stop=early_stop)(**inputs_of(*given))
        assert_equal(got, given, config)

    @pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
    @pytest.mark.parametrize("early_stop", [True, False])
    def test_a_class_that_is_outvoted(self, mode, early_stop):
        config, given = RefineConfig(**mode, keep_scores=True), outvoted()
        got = RefineModule(config, early_stop=early_stop)(**inputs_of(*given))
        assert_equal(got, given, config)

    @pytest.mark.parametrize("mode", ["maximum velocity", "calibrated", "optimal path", "fusion"])
    def test_the_vote_drops_it(self, mode):
        config = RefineConfig(**MODES[mode])
        assert refine(*outvoted(), config).kept.tolist() == [
            [True, True, False],
            [True, True, False],
        ]
        kept = refine(*outvoted(), replace(config, vote=0)).kept
        assert kept.tolist() == [[True, True, True], [True, True, False]]

    def test_has_nothing_to_train(self):
        assert not list(RefineModule(RefineConfig()).parameters())

    @pytest.mark.parametrize("own", [lambda low, image: low, "json:dumps"])
    def test_an_upsampler_of_the_user_s_has_no_graph(self, own):
        config = RefineConfig(upsampler=own)
        names = r"\['jbu', 'bilinear', 'guided'\] in a graph; got '(json:|.*lambda>)"
        for export in (RefineModule, export_program):
            with pytest.raises(ValueError, match=f"`upsampler` must be one of {names}"):
                export(config)

    def test_without_scores_there_are_four_outputs(self):
        given = problem(*SIZES["even"])
        assert len(RefineModule(RefineConfig())(**inputs_of(*given))) == 4


@pytest.fixture(scope="module")
def programs(uncached):
    """Exported programs by their options, each made once."""
    made = {}

    def make(prompt_index=False, early_stop=True, **options):
        key = (prompt_index, early_stop, tuple(options.items()))
        if key not in made:
            config = RefineConfig(**options)
            program = export_program(config, prompt_index=prompt_index, early_stop=early_stop)
            made[key] = config, program.module()
        return made[key]

    return make


@pytest.mark.skipif(TORCH < (2, 14), reason="torch.export fails on the loops before torch 2.14")
class TestProgram:
    """What `torch.export` makes of it."""

    @pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
    def test_equals_refine(self, programs, size):
        config, module = programs(mode="fusion", keep_scores=True, **FEW)
        given = problem(*size)
        assert_equal(module(**inputs_of(*given)), given, config)

    def test_a_class_that_is_outvoted(self, programs):
        config, module = programs(mode="fusion", keep_scores=True, **FEW)
        assert_equal(module(**inputs_of(*outvoted())), outvoted(), config)

    def test_with_synonyms(self, programs):
        config, module = programs(prompt_index=True, mode="kl", background=(0, 0.5))
        given = problem(2, 5, (5, 6), (7, 4), (31, 30))
        index = [0, 1, 1, 2, 0]
        got = module(**inputs_of(*given, index))
        assert got[1].shape[1] == 3
        assert_equal(got, given, config, index)

    def test_takes_more_pixels_than_patches_only(self, programs):
        """torch.export promises no size that it did not follow through the code."""
        _, module = programs(mode="kl", prompt_index=True, background=(0, 0.5))
        with pytest.raises((RuntimeError, AssertionError)):
            module(**inputs_of(*problem(1, 3, (4, 4), (9, 12), (2, 2)), [0, 1, 2]))


@pytest.fixture(scope="module")
def sessions(uncached, tmp_path_factory):
    """Sessions of onnxruntime by their options, each made once."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    folder, made = tmp_path_factory.mktemp("onnx"), {}

    def make(prompt_index=False, early_stop=True, **options):
        key = (prompt_index, early_stop, tuple(options.items()))
        if key not in made:
            config, path = RefineConfig(**options), folder / f"{len(made)}.onnx"
            export_onnx(path, config, prompt_index=prompt_index, early_stop=early_stop)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            made[key] = config, session, path
        return made[key]

    return make


def run(session, given, prompt_index=None):
    inputs = inputs_of(*given, prompt_index)
    return session.run(None, {name: x.numpy() for name, x in inputs.items()})


def operators(path):
    """The names of the operators that a file uses."""
    import onnx

    return {node.op_type for node in onnx.load(path).graph.node}


@SLOW
class TestOnnx:
    """What onnxruntime makes of the file."""

    # The sizes of one mode follow each other, so that they have its file in common. The optimal
    # path is exported with synonyms, below.
    @pytest.mark.parametrize("size", [*SIZES.values(), NARROW], ids=[*SIZES, "narrow"])
    @pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "optimal path"])
    def test_equals_refine(self, sessions, mode, size):
        config, session, _ = sessions(**MODES[mode], keep_scores=True, **FEW)
        given = problem(*size)
        assert_equal(run(session, given), given, config)

    @pytest.mark.parametrize("mode", ["maximum velocity", "calibrated", "fusion"])
    def test_a_class_that_is_outvoted(self, sessions, mode):
        config, session, _ = sessions(**MODES[mode], keep_scores=True, **FEW)
        assert_equal(run(session, outvoted()), outvoted(), config)

    def test_without_a_loop(self, sessions):
        steps = {"sinkhorn_iterations": 3, "max_steps": 4}
        config, session, path = sessions(early_stop=False, mode="fusion", **steps, **FEW)
        assert "Loop" not in operators(path)
        for size in SIZES.values():
            given = problem(*size)
            assert_equal(run(session, given), given, config)

    def test_optimal_path_with_synonyms_and_background(self, sessions):
        options = MODES["optimal path"] | {"background": (0, 0.5), "keep_scores": True, **FEW}
        config, session, _ = sessions(prompt_index=True, **options)
        indices = ([0, 1, 1, 2, 0], [1, 2, 3, 3, 3], [2, 0, 1])
        cases = [((2, len(index), (5, 6), (7, 4), (31, 30)), index) for index in indices]
        cases += [(size, list(range(size[1]))) for size in (*SIZES.values(), NARROW)]
        for size, index in cases:
            given = problem(*size, seed=1)
            got = run(session, given, index)
            assert got[1].shape[1] == max(index) + 1
            assert_equal(got, given, config, index)

    def test_names_and_opset(self, sessions):
        onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
        _, session, path = sessions(**MODES["maximum velocity"], keep_scores=True, **FEW)
        assert [x.name for x in session.get_inputs()] == ["logits", "attention", "image"]
        assert [x.name for x in session.get_outputs()] == list(OUTPUTS)
        graph = onnx.load(path)
        onnx.checker.check_model(graph, full_check=True)
        assert [x.version for x in graph.opset_import if x.domain in ("", "ai.onnx")] == [OPSET]
        assert "Loop" in operators(path)
        sizes = [x.shape for x in session.get_inputs()]
        assert not any(isinstance(size, int) for size in sizes[0] + sizes[1])
        assert [isinstance(size, int) for size in sizes[2]] == [False, True, False, False]

    def test_a_folder_that_is_not_there(self, tmp_path):
        pytest.importorskip("onnxscript", reason="needs the extra `export`")
        with pytest.raises(FileNotFoundError, match="`path` must be in an existing folder"):
            export_onnx(tmp_path / "none" / "kl.onnx", RefineConfig(mode="kl"))


def test_the_traced_sizes_differ_from_each_other():
    assert len(set(EXAMPLE.values())) == len(EXAMPLE)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ovss-refine\[export\]'"):
        export_onnx("never.onnx", RefineConfig())


def test_import_loads_no_onnx(forks):
    code = "import sys, ovss_refine.export; print([m for m in sys.modules if m.startswith('onnx')])"
    assert forks.printed(code) == "[]"


class TestRepeat:
    """The loop that both the numerics and the graph use."""

    def count(self, every, until, steps=range(1, 10)):
        taken = []

        def step(t, x):
            taken.append(t)
            return (x + 1,)

        def settled(before, after):
            assert after[0] == before[0] + 1
            return after[0] >= until

        (x,), last, _ = repeat(step, settled, (torch.zeros(()),), steps, every)
        assert int(x) == len(taken) == last
        return taken

    def test_stops_when_settled(self):
        assert self.count(every=1, until=3) == [1, 2, 3]

    def test_looks_now_and_then_only(self):
        assert self.count(every=4, until=3) == [1, 2, 3, 4]

    def test_never_looks(self):
        assert self.count(every=0, until=3) == list(range(1, 10))

    def test_takes_no_more_than_the_steps(self):
        assert self.count(every=1, until=100) == list(range(1, 10))
        assert self.count(every=1, until=1, steps=range(1, 1)) == []
