"""Batches: equal shapes only, no sample is lost, none waits forever."""

import numpy as np
import torch

from ovss_refine.attention import affinity
from ovss_refine.evaluation.batches import WAITING, Sample, batches
from ovss_refine.logits import Logits

CPU = torch.device("cpu")


def sample(id, size=(4, 6), K=2, grid=(2, 2), seed=0):
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(3, *grid)).astype(np.float32))
    return Sample(
        id=str(id),
        image=rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        truth=np.zeros(size, np.uint8),
        logits=Logits(torch.from_numpy(rng.normal(size=(K, 2, 2))), 3.0),
        attention=affinity(features, 0.1),
    )


def ids(made):
    return [[one.id for one in batch.samples] for batch in made]


def test_one_at_a_time_keeps_the_order():
    samples = [sample(i, size=(4, 4 + i % 3)) for i in range(7)]
    assert ids(batches(samples, 1)) == [[str(i)] for i in range(7)]


def test_sizes_do_not_mix_and_no_sample_is_lost():
    samples = [sample(i, size=(4, 4 + i % 2)) for i in range(7)]
    assert ids(batches(samples, 2)) == [["0", "2"], ["1", "3"], ["4", "6"], ["5"]]
    other = [sample("a"), sample("b", K=3), sample("c", grid=(1, 3)), sample("d")]
    assert ids(batches(other, 2)) == [["a", "d"], ["b"], ["c"]]


def test_a_sample_that_waits_too_long_is_a_batch_of_its_own():
    samples = [sample("lonely", size=(9, 9))]
    samples += [sample(i, size=(4, 4 + i)) for i in range(4 * WAITING)]
    first = ids(batches(samples, 2))
    assert first[0] == ["lonely"]
    assert sorted(id for batch in first for id in batch) == sorted(s.id for s in samples)


def test_a_batch_stacks_its_samples():
    samples = [sample(i, seed=i) for i in range(3)]
    (batch,) = batches(samples, 3)
    images, logits, attention = batch.images(CPU), batch.logits(CPU), batch.attention(CPU, (2, 2))
    assert images.is_contiguous()
    for i, one in enumerate(samples):
        np.testing.assert_array_equal(
            np.round(images[i].numpy() * 255), one.image.transpose(2, 0, 1)
        )
        torch.testing.assert_close(logits.values[i], one.logits.values)
        torch.testing.assert_close(attention.weights[i], one.attention.weights)
    assert (logits.scale, attention.grid) == (3.0, (2, 2))
