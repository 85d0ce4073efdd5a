"""The probabilities of pixels that other decision rules start from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ovss_refine.baseline.resize import resize
from ovss_refine.logits import Logits


def class_probabilities(logits: Logits, size: Sequence[int]) -> Tensor:
    """Upsample logits bilinearly, softmax over all prompts, and sum the prompts of a class.

    Args:
        logits: [B, K, h, w] values, their scale and the class of each prompt.
        size: (H, W) of the result.

    Returns:
        [B, M, H, W] float32, summing to one over the M classes.
    """
    values = resize(logits.values.float(), size)
    P = (logits.scale * values).softmax(dim=1)  # [B, K, H, W]
    if logits.prompt_index is None:
        return P
    index = torch.as_tensor(logits.prompt_index, device=P.device)
    classes = P.new_zeros(P.shape[0], int(index.max()) + 1, *P.shape[2:])
    return classes.index_add_(1, index, P)
