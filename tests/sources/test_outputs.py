"""Maps over all tokens to attention over patches, without a model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ovss_refine.sources.outputs import from_hugging_face, from_tokens


def maps(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator)).softmax(-1)


def by_hand(weights, N):
    """[B, A, T, T] to [B, N, N], in loops and float64."""
    weights = weights.double().numpy()
    B, A, T, _ = weights.shape
    out = np.zeros((B, N, N))
    for b in range(B):
        for i in range(N):
            row = sum(weights[b, a, T - N + i] for a in range(A))[T - N :]
            out[b, i] = row / row.sum()
    return torch.from_numpy(out).float()


@pytest.mark.parametrize("extra", [0, 1, 5, 8])
def test_tokens_are_dropped_and_rows_renormalised(extra):
    weights = maps(2, 3, 6 + extra, 6 + extra)
    attention = from_tokens(weights, (2, 3))
    assert attention.grid == (2, 3)
    torch.testing.assert_close(attention.weights, by_hand(weights, 6))
    same = from_tokens(weights.mean(1), (2, 3)), from_tokens(weights.mean(1).numpy(), (2, 3))
    for one in same:
        torch.testing.assert_close(one.weights, attention.weights)
    torch.testing.assert_close(from_tokens(weights[0].mean(0), (2, 3)).weights, same[0].weights[0])
    half = from_tokens(weights.half(), (2, 3)).weights
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, attention.weights, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("weights", "grid", "error", "message"),
    [
        (maps(5, 5), (2, 3), ValueError, "gh \\* gw = 6 patches .*; got T=5"),
        (maps(15, 15), (2, 3), ValueError, "at most 8 tokens in front of them; got T=15"),
        (maps(7, 6), (2, 3), ValueError, r"`weights` must have shape \[N, N\]"),
        (maps(7, 7) * 1.2, (2, 3), ValueError, r"sum to one; got sums from 1\.2 .*model\.eval"),
        (maps(7, 7).long(), (2, 3), TypeError, "must be a floating-point tensor"),
        (maps(7, 7), (6,), ValueError, r"`grid` must be \(gh, gw\)"),
        (maps(7, 7), (2.0, 3), TypeError, "`grid` must be a whole number"),
        (torch.eye(7)[:, [0] * 7], (2, 3), ValueError, "sum to one"),
        (torch.eye(7)[[0] * 7], (2, 3), ValueError, "every patch must attend to patches"),
    ],
)
def test_bad_maps(weights, grid, error, message):
    with pytest.raises(error, match=message):
        from_tokens(weights, grid)


def outputs(*layers, **more):
    return SimpleNamespace(attentions=layers, **more)


CONFIG = SimpleNamespace(patch_size=8, model_type="vit")
SIZE = (16, 24)
GOOD = maps(2, 3, 7, 7)


def test_layers_are_averaged():
    layers = [maps(2, 3, 7, 7, seed=i) for i in range(3)]
    found = from_hugging_face(outputs(*layers), CONFIG, SIZE, layers=[0, -1])
    expected = (by_hand(layers[0], 6) + by_hand(layers[2], 6)) / 2
    torch.testing.assert_close(found.weights, expected)
    last = from_hugging_face(outputs(*layers), CONFIG, torch.zeros(2, 3, 17, 31))
    torch.testing.assert_close(last.weights, by_hand(layers[2], 6))
    assert last.grid == (2, 3)


def test_patches_need_not_be_square_nor_all_of_the_image():
    config = SimpleNamespace(patch_size=(8, 4), num_register_tokens=2, model_type="x")
    assert from_hugging_face(outputs(maps(1, 2, 15, 15)), config, (19, 27)).grid == (2, 6)
    deit = SimpleNamespace(patch_size=8, model_type="deit")
    assert from_hugging_face(outputs(maps(1, 2, 8, 8)), deit, SIZE).grid == (2, 3)


@pytest.mark.parametrize(
    ("given", "config", "size", "error", "message"),
    [
        (SimpleNamespace(), CONFIG, SIZE, ValueError, r'none\. Load .*attn_implementation="eager"'),
        (outputs(), CONFIG, SIZE, ValueError, "`output_attentions=True`"),
        (outputs(None), CONFIG, SIZE, ValueError, "`output_attentions=True`"),
        (
            outputs(vision_model_output=1),
            CONFIG,
            SIZE,
            ValueError,
            r"`outputs\.vision_model_output`",
        ),
        (outputs(GOOD, ids_restore=1), CONFIG, SIZE, ValueError, "shuffled"),
        (outputs(GOOD), CONFIG, (16, 16), ValueError, "16 x 16 pixels are 2 x 2 patches of 8 x 8"),
        (outputs(maps(1, 1, 17, 17)), CONFIG, SIZE, ValueError, "An image of 32 x 32 would fit"),
        (outputs(maps(1, 1, 8, 8)), CONFIG, SIZE, ValueError, "but `outputs` have T=8 tokens"),
        (outputs(GOOD), CONFIG, 16, TypeError, r"`image_size` must be `pixel_values` .*; got 16"),
        (outputs(GOOD), CONFIG, (16, 2.5), TypeError, "`image_size` must be a whole number"),
        (outputs(GOOD), SimpleNamespace(config=1), SIZE, TypeError, r"Pass `model\.config`"),
        (outputs(GOOD, maps(2, 3, 4, 4)), CONFIG, SIZE, ValueError, "plain .*; those of vit are"),
        (outputs(maps(2, 3, 7, 4)), CONFIG, SIZE, ValueError, "or of fewer keys"),
        (outputs(GOOD), CONFIG, torch.zeros(1, 3, 16, 24), ValueError, "of windows"),
        (outputs(GOOD * 0.9), CONFIG, SIZE, ValueError, r"call `model\.eval\(\)` first"),
    ],
)
def test_bad_outputs(given, config, size, error, message):
    with pytest.raises(error, match=message):
        from_hugging_face(given, config, size)


@pytest.mark.parametrize(("layers", "message"), [([2], "in \\[-2, 1\\]; got 2"), ([], "at least")])
def test_bad_layers(layers, message):
    with pytest.raises(ValueError, match=f"`layers` must .*{message}"):
        from_hugging_face(outputs(GOOD, GOOD), CONFIG, SIZE, layers=layers)
