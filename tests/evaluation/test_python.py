"""`evaluate` from Python: data and sources of all forms, the command's numbers, resuming."""

import functools
import inspect
import json
import os
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import ovss_refine.evaluation
from evaluation.test_run import arguments, make, numbers
from evaluation.trees import LAYOUTS, read_labels, write_tree
from ovss_refine import Attention, Logits, Refiner
from ovss_refine.attention import affinity
from ovss_refine.cli import main
from ovss_refine.evaluation import ROWS, EvaluationResult, evaluate
from ovss_refine.evaluation.dataset import load_dataset
from ovss_refine.evaluation.given import as_given
from ovss_refine.evaluation.python import _device as device_for
from ovss_refine.evaluation.request import Chosen, EvaluateRequest
from sources.test_processes import torchrun

NAMES = ["sky", "road", "tree", "car", "sign"]
PROJECTION = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def pooled(images):
    return nn.functional.avg_pool2d(images, 8)  # [B, 3, h, w]


def segment(images):
    """Score five classes by the colour of a patch."""
    return 20 * torch.einsum("kc,bchw->bkhw", PROJECTION, pooled(images) - 0.5)


def attend(images):
    return affinity(pooled(images) - 0.5, 0.1)


def files(root, ids):
    """Return the paths of image and mask."""
    image, mask = LAYOUTS["folder"][:2]
    return [(str(root / image.format(id)), root / mask.format(id)) for id in ids]


def counts_of(root, ids, refiner):
    """Count with the refiner and a histogram alone."""
    total = np.zeros((5, 5), int)
    for id, (path, _) in zip(ids, files(root, ids), strict=True):
        with Image.open(path) as opened:
            pixels = torch.from_numpy(np.array(opened)).permute(2, 0, 1)[None].float() / 255
        labels = refiner(segment(pixels), attend(pixels), pixels).labels[0].numpy()
        truth = read_labels(root, "folder", id)
        np.add.at(total, (truth[truth != 255], labels[truth != 255]), 1)
    return total


class Sequenced:
    """A data set as torch and Hugging Face have it: `len`, `[i]`, nothing else."""

    def __init__(self, pairs, names=None):
        self.pairs, self.names, self.read = pairs, names, []

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        if i >= len(self.pairs):
            raise IndexError(i)
        self.read.append(i)
        pair = self.pairs[i]
        return pair if self.names is None else dict(zip(self.names, pair, strict=True))


def decoded(pairs):
    return [(Image.open(image), Image.open(mask)) for image, mask in pairs]


def arrays(pairs):
    return [tuple(map(np.array, pair)) for pair in decoded(pairs)]


def tensors(pairs):
    made = [tuple(map(torch.from_numpy, pair)) for pair in arrays(pairs)]
    return [(image.permute(2, 0, 1) / 255, mask[None].long()) for image, mask in made]


FORMS = {
    "files": (list, {}),
    "PIL images": (decoded, {}),
    "arrays": (arrays, {}),
    "tensors": (tensors, {}),
    "a generator": (lambda pairs: (pair for pair in decoded(pairs)), {}),
    "a mapping": (lambda pairs: Sequenced(decoded(pairs), ("image", "annotation")), {}),
    "columns": (
        lambda pairs: Sequenced([("x", *pair) for pair in decoded(pairs)], ("label", "a", "b")),
        {"columns": ("a", "b")},
    ),
    "positions": (
        lambda pairs: [(mask, image) for image, mask in decoded(pairs)],
        {"columns": (1, 0)},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gives_the_same_counts(tmp_path, form):
    ids = sorted(write_tree(tmp_path, "folder", 3))
    make_form, more = FORMS[form]
    data = make_form(files(tmp_path, ids))
    result = evaluate(segment, attend, dataset=data, names=NAMES, rows=["refined"], **more)
    expected = counts_of(tmp_path, ids, Refiner())
    assert np.abs(expected - result.counts["refined"]).sum() <= 0.005 * expected.sum()
    assert (result.to_dict()["images"], result.out) == (3, None)
    folder = evaluate(segment, attend, dataset=tmp_path, rows=["refined"])
    np.testing.assert_array_equal(folder.counts["refined"], result.counts["refined"])


def test_the_command_gives_the_same(tmp_path, capsys):
    make(tmp_path, "folder", count=4)
    assert main(arguments(tmp_path, "folder", "--tau", "0.4", "--mode", "optimal_path")) == 0
    shown = capsys.readouterr().out
    stored = f"npz:{tmp_path / 'arrays'}"
    result = evaluate(
        stored, stored, dataset=tmp_path, mode="optimal_path", tau=0.4, out=tmp_path / "python"
    )
    assert numbers(tmp_path / "out") == numbers(tmp_path / "python")
    manifests = [(tmp_path / out / "manifest.json").read_text() for out in ("out", "python")]
    settings = [json.loads(text)["settings"] for text in manifests]
    assert settings[0] == settings[1]
    # The command's own run is found finished, to the time: nothing is measured again.
    asked = {"mode": "optimal_path", "tau": 0.4, "out": tmp_path / "out"}
    again = evaluate(stored, stored, dataset="folder", root=tmp_path, **asked)
    assert str(again) in shown
    assert again.found == json.loads((tmp_path / "out/results.json").read_text())
    assert result.out == tmp_path / "python"


def test_a_data_set_by_name(tmp_path):
    ids = make(tmp_path, "voc20", 2)
    stored = f"npz:{tmp_path / 'arrays'}"
    result = evaluate(stored, stored, dataset="voc20", root=tmp_path, rows=["baseline"])
    described = evaluate(
        stored, stored, dataset=load_dataset("voc20"), root=tmp_path, rows=["baseline"]
    )
    assert len(result.names) == 20
    assert len(ids) == result.to_dict()["images"]
    np.testing.assert_array_equal(result.counts["baseline"], described.counts["baseline"])


def test_zero_that_is_ignored(tmp_path):
    ids = sorted(write_tree(tmp_path, "folder", 2))
    shifted = [
        (image, np.where(mask == 255, 0, mask + 1)) for image, mask in arrays(files(tmp_path, ids))
    ]
    asked = {"names": ", ".join(NAMES), "rows": ["baseline"]}
    plain = evaluate(segment, dataset=files(tmp_path, ids), **asked)
    result = evaluate(segment, dataset=shifted, first_is_ignored=True, **asked)
    np.testing.assert_array_equal(plain.counts["baseline"], result.counts["baseline"])
    wrong = evaluate(segment, dataset=[(x, m % 5) for x, m in shifted], **asked)
    assert not np.array_equal(wrong.counts["baseline"], result.counts["baseline"])


def test_what_a_function_may_return(tmp_path):
    ids = sorted(write_tree(tmp_path, "folder", 2))
    data = {"dataset": files(tmp_path, ids), "names": NAMES, "rows": ["baseline", "refined"]}
    expected = evaluate(segment, attend, **data)

    class Outputs:
        def __init__(self, logits):
            self.logits = logits

    class Ready:
        def logits(self, images):
            return Logits(segment(images))

        def attention(self, images):
            return attend(images)

    def doubled(images):  # two prompts of the last class, each as good as half of it
        values = segment(images)
        last = values[:, -1:] - np.log(2)
        return Logits(torch.cat([values[:, :-1], last, last], 1), prompt_index=[0, 1, 2, 3, 4, 4])

    module = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(3, 5, 1))
    module[1].weight.data = 20 * PROJECTION[..., None, None]
    module[1].bias.data = -10 * PROJECTION.sum(1)
    for logits, attention in (
        (lambda images: segment(images).numpy(), lambda images: attend(images).weights),
        (lambda images: Outputs(segment(images)), lambda images: attend(images).weights.numpy()),
        (lambda images: (segment(images), attend(images)), None),
        (lambda images: (Logits(segment(images)), attend(images).weights[:, None]), None),
        (functools.partial(lambda images, gain: gain * segment(images), gain=1.0), attend),
        (Ready(), Ready()),
        (Ready().logits, Ready().attention),
        (module, attend),
    ):
        result = evaluate(logits, attention, **data)
        for row in data["rows"]:
            np.testing.assert_array_equal(result.counts[row], expected.counts[row])
    data["rows"] = ["paper"]  # a vote goes by the best prompt, which is half as good
    result, expected = (evaluate(logits, attend, **data) for logits in (doubled, segment))
    np.testing.assert_array_equal(result.counts["paper"], expected.counts["paper"])


def test_logits_by_id(tmp_path):
    ids = sorted(write_tree(tmp_path, "folder", 2))
    pairs = files(tmp_path, ids)

    class Stored:
        """Logits of images that were computed before, by position."""

        def for_image(self, image_id):
            with Image.open(pairs[int(image_id)][0]) as image:
                pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
            return Logits(segment(pixels)[0])

    asked = {"dataset": pairs, "names": NAMES, "rows": ["baseline"]}
    got = evaluate(Stored(), **asked).counts["baseline"]
    np.testing.assert_array_equal(got, evaluate(segment, **asked).counts["baseline"])


def test_the_result(tmp_path):
    ids = sorted(write_tree(tmp_path, "folder", 2))
    pairs = files(tmp_path, ids)
    result = evaluate(segment, attend, dataset=pairs, names=NAMES)
    assert isinstance(result, EvaluationResult)
    assert tuple(result.miou) == tuple(result.rows) == ROWS
    counts = result.counts["refined"].astype(float)
    hits, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    iou = 100 * hits[union > 0] / union[union > 0]
    assert result.miou["refined"] == pytest.approx(iou.mean())
    by_class = result.per_class()
    assert [row["class"] for row in by_class] == NAMES
    assert [row["refined"] for row in by_class if row["refined"] is not None] == pytest.approx(iou)
    assert f" {iou.mean():.2f} |" in str(result)
    assert str(result) == result._repr_markdown_()
    assert repr(result).startswith("EvaluationResult(pairs, 2 images, mIoU: baseline ")
    assert f", refined {iou.mean():.2f}, " in repr(result)
    assert result.to_markdown().startswith(str(result))
    assert all(name in result.to_markdown() for name in NAMES)
    content = result.to_dict()
    assert json.loads(json.dumps(content)) == content
    content["rows"].clear()
    assert result.rows  # a copy
    assert result.notes == result.found["notes"]


def test_pandas(tmp_path, monkeypatch):
    ids = write_tree(tmp_path, "folder", 1)
    asked = {"dataset": files(tmp_path, ids), "names": NAMES, "rows": ["baseline"]}
    result = evaluate(segment, **asked)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'ovss-refine\[bridges\]'"):
            result.to_pandas()
    pandas = pytest.importorskip("pandas", reason="the extra `bridges` is not installed")
    frame = result.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert [*frame.index] == NAMES
    expected = [row["baseline"] for row in result.per_class()]
    np.testing.assert_allclose(frame["baseline"].astype(float), np.array(expected, float))


def test_a_stopped_run_is_resumed_and_other_code_is_refused(tmp_path):
    ids = sorted(write_tree(tmp_path, "folder", 5))
    seen, fails = [], [True]

    def make_segment(gain):
        def counted(images):
            seen.append(len(images))
            if len(seen) == 3 and fails:
                raise RuntimeError("the power went off")
            return gain * segment(images)

        return counted

    asked = {"dataset": files(tmp_path, ids), "names": NAMES, "rows": ["baseline"]}
    whole = evaluate(segment, **asked)
    out = {"out": tmp_path / "out"}
    with pytest.raises(RuntimeError, match="the power went off"):
        evaluate(make_segment(1.0), **asked, **out)
    fails.clear()
    result = evaluate(make_segment(1.0), **asked, **out)
    assert len(seen) == 3 + 3
    np.testing.assert_array_equal(result.counts["baseline"], whole.counts["baseline"])
    assert evaluate(make_segment(1.0), **asked, **out).miou == result.miou
    assert len(seen) == 6  # nothing was measured again
    with pytest.raises(ValueError, match=r"must be a folder of the same .* code was '\w+', is"):
        evaluate(make_segment(2.0), **asked, **out)
    changed = arrays(asked["dataset"])
    changed[2][1][0, 0] = 3
    with pytest.raises(ValueError, match="dataset files was"):
        evaluate(make_segment(1.0), **asked | {"dataset": changed}, **out)


def test_other_weights_of_a_function_are_refused(tmp_path):
    ids = write_tree(tmp_path, "folder", 1)
    model = nn.Conv2d(3, 5, 8, stride=8)

    def run():
        return evaluate(
            lambda images: model(images),
            dataset=files(tmp_path, ids),
            names=NAMES,
            rows=["baseline"],
            out=tmp_path / "out",
        )

    first = run()
    assert run().found == first.found
    model.weight.data.mul_(2)
    with pytest.raises(ValueError, match=r"logits weights was '\w{16}', is '\w{16}'"):
        run()


def test_a_data_set_is_read_as_it_is_needed(tmp_path):
    ids = sorted(write_tree(tmp_path, "folder", 5))
    data = Sequenced(files(tmp_path, ids))
    evaluate(segment, dataset=data, names=NAMES, rows=["baseline"], limit=2, out=tmp_path / "out")
    assert max(data.read) == 1
    taken = []

    def endless():
        for pair in files(tmp_path, ids) * 100:
            taken.append(pair)
            yield pair

    asked = {"names": NAMES, "rows": ["baseline"]}
    result = evaluate(segment, dataset=endless(), limit=2, **asked)
    assert (result.to_dict()["images"], len(taken)) == (2, 2)


def test_damaged_pairs_are_skipped_or_stop(tmp_path):
    ids = sorted(write_tree(tmp_path, "folder", 3))
    pairs = files(tmp_path, ids)
    pairs[1] = ("missing.jpg", pairs[1][1])
    asked = {"dataset": pairs, "names": NAMES, "rows": ["baseline"]}
    with pytest.raises(ValueError, match=r"1: `dataset\[1\]\[0\]` must be an existing file"):
        evaluate(segment, **asked)
    result = evaluate(segment, **asked, on_error="skip")
    assert [*result.found["skipped"]] == ["1"]
    assert result.found["images"] == 2


def image():
    return np.full((8, 8, 3), 100, np.uint8)


def mask():
    return np.zeros((8, 8), np.uint8)


COLOURS = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ([], ValueError, "must have at least one pair"),
        (3, TypeError, "must be a name, a folder, or an iterable of .*; got int"),
        ({"train": []}, ValueError, r"must be one split; got \['train'\]\. .*`dataset\['train'\]`"),
        (DataLoader([(image(), mask())]), ValueError, r"got batches\. Pass `loader\.dataset`"),
        ([(image(), mask(), 0)], TypeError, r"`dataset\[0\]` must be a pair .*got 3 parts"),
        ([{"image": image(), "x": mask()}], ValueError, r"`columns` must .*has \['image', 'x'\]"),
        ([(image(), mask()[:4])], ValueError, r"`dataset\[0\]\[1\]` must have the size of its"),
        ([(image(), mask() + 7)], ValueError, r"must have values from 0 to 4, or 255; got \[7\]"),
        ([(image(), mask() - 1.0)], TypeError, r"`dataset\[0\]\[1\]` must be a label map.*float64"),
        ([(image(), mask().astype(int) - 1)], ValueError, r"got -1\. Write 255 for pixels"),
        ([(image(), mask().astype(int) + 10**9)], ValueError, r"to 65535; got 1000000000"),
        ([(image(), image())], ValueError, r"one label for each pixel, \[H, W\]; got \[8, 8, 3\]"),
        ([(image(), COLOURS)], ValueError, r"one label for each pixel; got an image of mode 'RGB'"),
        ([(image(), 3)], TypeError, r"`dataset\[0\]\[1\]` must be a label map.*; got int"),
        ([(image() - 300.0, mask())], ValueError, r"`dataset\[0\]\[0\]` must be finite and in"),
        ("nowhere", FileNotFoundError, r"must be one of \['ade20k', .*or an existing folder"),
        ("voc21", ValueError, r"`root` must be the folder with the data set; got None"),
    ],
)
def test_bad_data(dataset, error, message):
    with pytest.raises(error, match=message):
        evaluate(segment, dataset=dataset, names=NAMES, rows=["baseline"])


def test_a_folder_has_no_other_root(tmp_path):
    write_tree(tmp_path, "folder", 1)
    message = "`root` must be left out where `dataset` is the folder itself"
    with pytest.raises(ValueError, match=message):
        evaluate(segment, dataset=tmp_path, root=tmp_path, names=NAMES, rows=["baseline"])


def in_training():
    return nn.Sequential(nn.Conv2d(3, 5, 8, 8), nn.BatchNorm2d(5))


class Model(nn.Module):
    """A model with a layer that is called like a source's method."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Conv2d(3, 5, 8, 8)

    def forward(self, images):
        return self.logits(images)


def predicted(images):
    class Sample:
        seg_logits = None

    return [Sample()]


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"logits": 3}, TypeError, "`logits` must be a name, a function .*; got int"),
        ({"attention": 3}, TypeError, "`attention` must be a name, a function .*; got int"),
        ({"logits": in_training()}, ValueError, "evaluation mode; got Sequential in training mode"),
        ({"logits": lambda x: {"out": x}}, ValueError, r"got dict of \['out'\]\. .*`\['out'\]`"),
        ({"logits": predicted}, ValueError, r"got list\. Return `torch\.stack\(\[sample\.seg_log"),
        ({"logits": lambda x: segment(x)[0]}, ValueError, r"Add the batch axis: `logits\[None\]`"),
        ({"logits": lambda x: segment(x)[:, :3]}, ValueError, r"must have the M=5 classes .*got 3"),
        ({"rows": ["refined"]}, ValueError, r"`attention` must be given for .*\(logits, attention"),
        ({"attention": lambda x: None}, ValueError, r"`attention` must return .*; got NoneType"),
        (
            {"attention": lambda x: attend(x)[0]},
            ValueError,
            r"must have shape \[B=1, N, N\]",
        ),
        ({"logits": lambda x: (segment(x), attend(x))}, ValueError, "alone where `attention` is"),
        ({"logits": Model}, TypeError, "`logits` must be an object; got the class Model"),
        ({"names": dict(enumerate(NAMES))}, TypeError, r"Pass `list\(names\.values\(\)\)`"),
        (
            {"dataset": load_dataset("voc21"), "root": "."},
            ValueError,
            "must be left out with a `DataSet`",
        ),
        ({"rows": "refined"}, TypeError, "`rows` must be a list"),
        ({"rows": ["best"]}, ValueError, r"`rows` must be some of .*; got \['best'\]"),
        ({"names": None}, ValueError, "`names` must be the classes of the data set"),
        ({"names": ["sky"]}, ValueError, "`names` must name at least 2"),
        ({"names": NAMES[:4]}, ValueError, r"must have the M=4 classes of pairs; got 5"),
        ({"root": "x"}, ValueError, "`root` must be left out where `dataset` is not a name"),
        ({"prompts": "sclip"}, ValueError, "`prompts` must be left out if logits come from"),
        ({"logits_options": {"a": 1}}, ValueError, "`logits_options` must be left out unless"),
        ({"pictures": 1}, ValueError, "`out` must be a folder for `pictures`"),
        ({"taw": 1}, TypeError, "Did you mean `tau`"),
        ({"on_error": "ask"}, ValueError, "`on_error` must be one of"),
        ({"limit": 0}, ValueError, "`limit` must be at least 1; got 0"),
    ],
)
def test_bad_arguments(asked, error, message):
    usual = {"logits": segment, "dataset": [(image(), mask())], "names": NAMES}
    if "rows" not in asked:
        usual["attention"] = attend
    with pytest.raises(error, match=message):
        evaluate(**usual | asked)


def test_a_layer_is_no_method_and_other_orders_are_refused():
    asked = {"dataset": [(image(), mask())], "rows": ["baseline"]}
    assert evaluate(Model(), names=NAMES, **asked).miou

    def named(images):
        return Logits(segment(images), names=NAMES)

    assert evaluate(named, names=NAMES, **asked).miou
    with pytest.raises(ValueError, match=r"'sign' at 0; got 'sky' there"):
        evaluate(named, names=NAMES[::-1], **asked)


def test_no_attention_is_computed_for_rows_without():
    found = evaluate(
        lambda images: segment(images),
        dataset=[(image(), mask())],
        names=NAMES,
        rows=["baseline", "upsampling"],
    )
    assert set(found.miou) == {"baseline", "upsampling"}


def test_grids_of_bare_maps_are_found_as_in_a_refinement():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    data = {"dataset": [(pixels, np.zeros((16, 16), int))], "names": NAMES, "rows": ["refined"]}

    def finer(images):  # 4 x 4 patches, where the logits have 2 x 2
        return affinity(nn.functional.avg_pool2d(images, 4), 0.1)

    wanted = evaluate(segment, finer, **data)
    result = evaluate(segment, lambda images: finer(images).weights, **data)
    np.testing.assert_array_equal(result.counts["refined"], wanted.counts["refined"])
    with pytest.raises(ValueError, match="like a map with 1 class or register tokens"):
        evaluate(segment, lambda images: Attention(torch.eye(5)[None], (1, 5)).weights, **data)


def test_defaults_are_the_request_s():
    signature = inspect.signature(evaluate).parameters
    made = {one.name: one for one in fields(EvaluateRequest)}
    shared = set(signature) & set(made) - {"logits", "attention", "dataset", "root", "device"}
    assert len(shared) == 12
    for name in shared:
        assert signature[name].default == made[name].default, name
    with pytest.raises(AttributeError, match="no attribute 'evaluation'"):
        ovss_refine.evaluation.evaluation  # noqa: B018


def test_hugging_face_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs Hugging Face `datasets`")
    ids = sorted(write_tree(tmp_path, "folder", 3))
    pairs = files(tmp_path, ids)
    made = datasets.Dataset.from_dict(
        {"image": [str(x) for x, _ in pairs], "annotation": [str(m) for _, m in pairs]},
        features=datasets.Features(image=datasets.Image(), annotation=datasets.Image()),
    )
    asked = {"names": NAMES, "rows": ["baseline", "refined"]}
    expected = evaluate(segment, attend, dataset=pairs, **asked)
    for one in (made, made.to_iterable_dataset()):
        result = evaluate(segment, attend, dataset=one, **asked)
        for row in asked["rows"]:
            np.testing.assert_array_equal(result.counts[row], expected.counts[row])


def test_the_device_is_that_of_the_models(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    model = nn.Conv2d(3, 5, 8, device="meta")
    ours = as_given(lambda images: model(images), "logits")
    plain, named = as_given(attend, "attention"), Chosen("dinov2-b14-reg")
    assert device_for(None, ours, named) == device_for(None, plain, ours) == "meta"
    assert device_for(None, plain, plain) == "cpu"
    assert device_for(None, plain, named) == device_for(None, named, named) == "auto"
    assert device_for(torch.device("cpu"), ours, named) == "cpu"
    monkeypatch.setenv("WORLD_SIZE", "2")  # each process has a device of its own
    assert device_for(None, ours, named) == "auto"
    with pytest.raises(ValueError, match=r"`out` must be a folder .* that all processes share"):
        evaluate(segment, dataset=[(image(), mask())], names=NAMES, rows=["baseline"])


SCRIPT = """
import sys
from pathlib import Path
from evaluation.test_python import NAMES, attend, files, segment
from ovss_refine.evaluation import evaluate

root, *ids = sys.argv[1:]
found = evaluate(segment, attend, dataset=files(Path(root), ids), names=NAMES,
                 rows=["refined"], out=root + "/two")
# Under torchrun, `print` writes each argument by itself, and two processes mix theirs.
sys.stdout.write(f"found {None if found is None else found.miou}\\n")
"""


@pytest.mark.slow("two processes import torch")
def test_two_processes_share_the_pairs(tmp_path, monkeypatch):
    ids = write_tree(tmp_path, "folder", 3)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(Path(__file__).parents[1])]))
    (tmp_path / "script.py").write_text(SCRIPT)
    done = torchrun(2, [str(tmp_path), *ids], command=(str(tmp_path / "script.py"),))
    assert done.returncode == 0, done.stderr
    one = evaluate(segment, attend, dataset=files(tmp_path, ids), names=NAMES, rows=["refined"])
    lines = [line for line in done.stdout.splitlines() if line.startswith("found")]
    assert sorted(lines) == sorted(["found None", f"found {one.miou}"])
    assert len([*(tmp_path / "two").glob("records.*.jsonl")]) == 2
