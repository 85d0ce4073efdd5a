"""The arguments of `evaluate`: which are refused, and which options a source gets."""

import numpy as np
import pytest

from evaluation.test_run import arguments, make, numbers
from evaluation.trees import CLASSES
from ovss_refine.cli import main


def test_wrong_arguments_are_refused(tmp_path, capsys):
    make(tmp_path, "folder")
    for more, message in (
        (("--limit", "0"), "`limit` must be at least 1"),
        (("--batch-size", "0"), "`batch_size` must be at least 1"),
        (("--workers", "0"), "`workers` must be at least 1"),
        (("--pictures", "-1"), "`pictures` must be at least 0"),
        (("--device", "abacus"), "`device` must be 'auto' or one that torch can use"),
        (("--prompts", "sclip"), "`prompts` must be left out if logits are read from files"),
        (("--logits-option", "scal=2"), "scal"),
        (("--probability-threshold", "2"), "`probability_threshold` must be"),
    ):
        assert main(arguments(tmp_path, "folder", *more)) == 2, more
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(arguments(tmp_path, "folder", "--logits-option", "scale"))
    assert "must be KEY=VALUE such as temperature=0.1; got 'scale'" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["file", "file/below/it", "/proc/self/nowhere"])
def test_results_that_cannot_be_kept_are_known_before_models_are_loaded(
    tmp_path, monkeypatch, capsys, out
):
    make(tmp_path, "folder")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("ovss_refine.registry.load_logits", None)
    line = arguments(tmp_path, "folder", out=out)
    line[line.index("--logits") + 1] = "clip"
    assert main([*line, "--device", "cpu"]) == 2
    assert "`out` must be a folder" in capsys.readouterr().err


def test_another_source_by_name_needs_its_library_or_says_so(tmp_path, capsys):
    make(tmp_path, "folder")
    line = arguments(tmp_path, "folder")
    line[line.index("--logits") + 1] = "sclap"
    assert main(line) == 2
    assert "Did you mean 'sclip'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "method", "wanted"),
    [
        ("voc21", "sclip", {"short_side": 336, "logit_scale": 65}),
        ("voc20", "naclip", {"short_side": 336, "window": None}),
        (
            "cityscapes",
            "rf-clip",
            {
                "short_side": 560,
                "global_weight": 0.1,
                "patch_weight": 0.03,
                "cluster_distance": 0.14,
                "global_from": "window",
            },
        ),
        ("voc21", "kk-mean", {}),
        ("voc21", "naclip", {"short_side": 336, "window": None}),
    ],
)
def test_a_published_method_gets_its_published_options(tmp_path, monkeypatch, name, method, wanted):
    make(tmp_path, name)
    given = {}

    def load(source, **options):
        given[source] = options
        raise ValueError("that is enough")

    monkeypatch.setattr("ovss_refine.registry.load_logits", load)
    of_the_decision = ("--logits-option", "pamr_iterations=0")  # not of the source
    line = arguments(tmp_path, name, "--logits-option", "stride=56", *of_the_decision)
    line[line.index("--logits") + 1] = method
    assert main([*line, "--device", "cpu", "--dtype", "bfloat16"]) == 2
    classes = given[method].pop("classes")
    assert given == {method: wanted | {"stride": 56, "dtype": "bfloat16"}}
    assert len(classes) == CLASSES[name]


def test_thresholds_of_the_baseline(tmp_path):
    make(tmp_path, "folder", count=2)
    assert main(arguments(tmp_path, "folder")) == 0
    more = ("--probability-threshold", "0.999", "--rows", "baseline", "refined")
    assert main(arguments(tmp_path, "folder", *more, out="bar")) == 0
    _, without = numbers(tmp_path / "out")
    _, with_bar = numbers(tmp_path / "bar")
    columns = np.sum(with_bar["baseline"], axis=0)
    assert columns[0] > 0.9 * columns.sum()  # hardly a pixel is that sure
    assert with_bar["refined"] == without["refined"]


def test_rivals_on_request(tmp_path):
    make(tmp_path, "folder", count=2)
    assert main(arguments(tmp_path, "folder", "--rows", "lposs", "upsampling")) == 0
    _, found = numbers(tmp_path / "out")
    assert list(found) == ["upsampling", "lposs"]
    assert found["lposs"] != found["upsampling"]
