"""FLOPs as torch counts them, two per multiply-add, and the tokens that modules are given."""

from contextlib import ExitStack

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def _native(q, _k, _v, C, *_, **__):
    """`nn.MultiheadAttention` as one call: four projections, two products."""
    B, T, _ = q
    return 2 * B * T * C * (4 * C + 2 * T)


# Torch counts fused attention on a GPU, but neither on a CPU nor in `nn.MultiheadAttention`.
UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._native_multi_head_attention: _native,
}


def flops(run):
    """Count the FLOPs of a call."""
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    with counter:
        run()
    return counter.get_total_flops()


def tokens_given(modules, run):
    """List how many tokens of one image each of the modules is given during a call."""
    given = [0] * len(modules)

    def watch(i):
        def hook(_module, args):
            given[i] += args[0].shape[-2]

        return hook

    with ExitStack() as stack:
        for i, module in enumerate(modules):
            stack.enter_context(module.register_forward_pre_hook(watch(i)))
        run()
    return given
