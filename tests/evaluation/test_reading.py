"""Images and masks: label rules of every data set, damaged files, reading ahead."""

import threading
import time

import numpy as np
import pytest
from PIL import Image

from evaluation.trees import CLASSES, read_labels, write_tree
from ovss_refine.evaluation.dataset import load_dataset
from ovss_refine.evaluation.reading import ahead, read_mask, read_pair, to_labels


def load(root, name):
    return load_dataset(name, names=root / "names.txt" if name == "folder" else None)


@pytest.mark.parametrize("name", CLASSES)
def test_label_rule_of_every_data_set(tmp_path, name):
    write_tree(tmp_path, name)
    dataset = load(tmp_path, name)
    for item in dataset.items(tmp_path):
        image, truth = read_pair(dataset, item)
        labels = truth.labels
        assert not truth.unclear
        np.testing.assert_array_equal(labels, read_labels(tmp_path, name, item.id))
        assert image.shape == (*labels.shape, 3)
        assert 255 in labels
        assert labels[labels != 255].max() == dataset.M - 1


def test_the_first_label_is_ignored_and_255_stays():
    raw = np.array([[0, 1, 2, 20, 255]])
    assert to_labels(raw, load_dataset("voc20"), "m").tolist() == [[255, 0, 1, 19, 255]]
    assert to_labels(raw, load_dataset("voc21"), "m").tolist() == [[0, 1, 2, 20, 255]]


@pytest.mark.parametrize(
    ("name", "wrong"), [("voc21", 21), ("voc20", 21), ("cityscapes", 19), ("coco-stuff", 171)]
)
def test_an_unknown_value_is_named(name, wrong):
    raw = np.array([[0, wrong - 1, wrong, 254]])
    highest = wrong - 1
    with pytest.raises(ValueError, match=rf"from 0 to {highest}, or 255; got \[{wrong}, 254\]"):
        to_labels(raw, load_dataset(name), "m.png")


def test_palettes_do_not_change_labels(tmp_path):
    values = np.array([[0, 3], [7, 255]], dtype=np.uint8)
    mask = Image.fromarray(values, mode="L")
    mask.putpalette(list(range(255, -1, -1)) * 3)
    mask.save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as written:
        assert written.mode == "P"
    assert read_mask(tmp_path / "m.png").values.tolist() == values.tolist()


def test_16_bits_are_read_completely(tmp_path):
    Image.fromarray(np.array([[258]], dtype=np.uint16)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").values.tolist() == [[258]]


def test_damage_is_named(tmp_path):
    ids = write_tree(tmp_path, "folder")
    dataset = load(tmp_path, "folder")
    a, b, c = dataset.items(tmp_path)
    Image.new("L", (5, 4)).save(a.mask)
    with pytest.raises(ValueError, match=r"the size of its image, 32 x 24; got 5 x 4"):
        read_pair(dataset, a)
    Image.new("RGB", (32, 24)).save(a.mask)
    with pytest.raises(ValueError, match="one label for each pixel; got an image of mode 'RGB'"):
        read_pair(dataset, a)
    a.mask.unlink()
    with pytest.raises(ValueError, match=rf"{ids[0]}\.png` must be the mask of an image"):
        read_pair(dataset, a)
    b.image.write_bytes(b.image.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{b.id}\.jpg` must be a readable image"):
        read_pair(dataset, b)
    b.image.unlink()
    with pytest.raises(ValueError, match=rf"{b.id}\.jpg` must be an image; it does not exist"):
        read_pair(dataset, b)
    c.mask.write_bytes(c.mask.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{c.id}\.png` must be a readable label map"):
        read_pair(dataset, c)


@pytest.mark.parametrize("workers", [1, 3])
def test_reads_in_order_and_only_a_few_ahead(workers):
    begun, most = [], 0

    def read(i):
        begun.append(i)
        if i == 4:
            raise ValueError("four")
        return 10 * i

    with ahead(read, range(20), workers) as stream:
        for i, (item, future) in enumerate(stream):
            assert item == i
            if i == 4:
                with pytest.raises(ValueError, match="four"):
                    future.result()
            else:
                assert future.result() == 10 * i
            time.sleep(0.002)
            most = max(most, len(begun) - i - 1)
    assert sorted(begun) == list(range(20))
    assert 1 <= most <= workers + 1


def test_the_next_item_is_read_in_the_meantime():
    """The next item is read while the first is being processed."""
    started = threading.Event()

    def read(i):
        if i == 1:
            started.set()
        return threading.current_thread() is not threading.main_thread()

    with ahead(read, range(2), 1) as stream:
        _, future = next(stream)
        assert future.result()
        assert started.wait(5)


def test_reads_that_have_not_begun_are_cancelled_on_exit():
    begun = []
    with ahead(begun.append, range(1000), 2) as stream:
        next(stream)
    assert len(begun) < 10
    assert not [t for t in threading.enumerate() if t.name.startswith("ovss-refine-read")]
