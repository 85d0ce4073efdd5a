"""Dense features of any timm backbone, and queries and keys of a ViT.

Axes: B images, C channels, A heads, T tokens (prefix tokens first), N = gh * gw patches, d channels
per head.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ovss_refine.checks import check_choice
from ovss_refine.registry import require
from ovss_refine.sources.device import DtypeLike
from ovss_refine_adapters.backbones.capture import (
    EarlyExit,
    check_images,
    check_layers,
    check_size,
    device_of,
    dtype_of,
    resize,
    target_size,
)
from ovss_refine_adapters.backbones.plain import plain, undisturbed
from ovss_refine_adapters.backbones.positions import resize_positions
from ovss_refine_adapters.backbones.timm_attention import (
    Projections,
    add_hooks,
    attention_of,
    patch_size,
    project,
    trunk,
)
from ovss_refine_adapters.backbones.weights import load_timm, pixel_statistics

Positions = Literal["timm", "reference"]


class TimmBackbone:
    """A timm model as a source of dense features of images in [0, 1].

    Args:
        model: name of a timm model, with its tag ("vit_base_patch8_224.dino"), "hf-hub:owner/name",
            a folder ("local-dir:PATH" or a path) with config.json and the weights, or a ready
            model.
        weights: weight file, or folder with one, instead of the download. Only safetensors files
            and pickles of nothing but weights are read.
        size: size to resize images to. None: their own, each side rounded to a multiple of the
            patch; a number: the shorter side; a pair: (height, width).
        positions: how a table of position embeddings is resized for other grids: "timm", or
            "reference", the rule of the released DINO code (`resize_positions`).
        device: device of the model; None: unchanged.
        dtype: dtype that the model's parameters are converted to, as for `given_dtype`; None:
            unchanged. Features, queries and keys are compared in float32 in any case.

    Raises:
        ModuleNotFoundError, FileNotFoundError: if timm or the weights are missing.
        ValueError: on an unknown model, weights of another model, a `size` that is not a multiple
            of the patch, "reference" for a model without a table, or `weights`, `device` or `dtype`
            with a ready model.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        weights: str | Path | None = None,
        size: int | tuple[int, int] | None = None,
        positions: Positions = "timm",
        device: str | torch.device | None = None,
        dtype: DtypeLike = None,
    ) -> None:
        """Load the model, or take a ready one."""
        check_choice("positions", positions, get_args(Positions))
        # Any: the attributes used below are timm's, not those of a plain module.
        self.model: Any = plain(load_timm(model, weights=weights, device=device, dtype=dtype))
        if not hasattr(self.model, "forward_intermediates"):
            raise ValueError(
                "`model` must be a model of timm with `forward_intermediates`; got "
                f"{type(self.model).__name__}. Pass the timm model inside, or a function that "
                "computes features to `AffinityAttention`."
            )
        self.patch_size = patch_size(trunk(self.model))
        self.size = check_size("size", size, self.patch_size)
        self.prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        if positions == "reference" and getattr(self.model, "pos_embed", None) is None:
            raise ValueError(
                "`positions` must be 'timm' for a model without a table of position embeddings; "
                f"{type(self.model).__name__} has none."
            )
        self.positions = positions
        config = require("timm.data", "models").resolve_model_data_config(self.model)
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            for values in pixel_statistics(config)
        )

    def features(self, images: Tensor, layer: int = -1) -> Tensor:
        """Return the dense features of a layer, after the model's final norm if it has one.

        Args:
            images: [B, 3, H, W] in [0, 1].
            layer: block of a ViT, or stage of another model; negative from the end.

        Returns:
            [B, C, gh, gw] float32 on the device of `images`, without prefix tokens.

        Raises:
            TypeError, ValueError: as `AttentionSource` does, or on a layer that does not exist, or
                a size that the model was not made for.
        """
        (index,) = self.check_layers([layer])
        maps = self._run(images, index, norm=True)
        return maps.float().to(images.device)

    def keys(self, images: Tensor, layer: int = -1) -> Tensor:
        """Return the keys of a block, [B, A, N, d] float32; arguments as in `features`."""
        tokens = self.projections(images, [layer])[0].k
        return tokens[:, :, self.prefix :].float().to(images.device)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return the grid (gh, gw) of a ViT's patches for `images`."""
        H, W = target_size(self.size, images, self.patch_size)
        return H // self.patch_size[0], W // self.patch_size[1]

    def projections(self, images: Tensor, layers: Sequence[int]) -> list[Projections]:
        """Return queries and keys of blocks, in their order, on the model's device.

        Prefix tokens are included. Raises as `features` does; ValueError if the model is not a ViT
        with plain attention, RuntimeError if a block ran without computing it.
        """
        indices = self.check_layers(layers)
        with self._capturing(indices, leave=max(indices)) as found:
            self._run(images, max(indices), norm=False)
        return found

    def features_and_projections(
        self, images: Tensor, layer: int = -1
    ) -> tuple[Tensor, Projections]:
        """Return what `features` and `projections` return for a layer, from one pass."""
        (index,) = self.check_layers([layer])
        with self._capturing([index], leave=None) as found:
            maps = self._run(images, index, norm=True)
        return maps.float().to(images.device), found[0]

    @contextmanager
    def _capturing(self, indices: Sequence[int], leave: int | None) -> Iterator[list[Projections]]:
        """Capture queries and keys of blocks that run inside; the list is filled at the end.

        The run ends as soon as those of the block `leave` are known; None: it goes on.
        """
        found: list[Projections] = []
        captured: dict[int, dict[str, Any]] = {index: {} for index in indices}
        with undisturbed(self.model), ExitStack() as stack:
            modules = {index: attention_of(self.model, index) for index in indices}
            for index, attn in modules.items():
                for handle in add_hooks(attn, captured[index], leave=index == leave):
                    stack.enter_context(handle)
            with suppress(EarlyExit):
                yield found
        found += [project(modules[index], captured[index], index) for index in indices]

    def check_layers(self, layers: Sequence[int]) -> list[int]:
        """Return `layers`, blocks or stages, counted from the start, or raise."""
        return check_layers(layers, len(self.model.feature_info))

    def check_attention(self, layers: Sequence[int]) -> None:
        """Raise ValueError unless the blocks have plain softmax attention."""
        with undisturbed(self.model):
            for index in layers:
                attention_of(self.model, index)

    def _run(self, images: Tensor, index: int, *, norm: bool) -> Tensor:
        """Run up to layer `index` and return its [B, C, gh, gw] features."""
        images = check_images(images)
        size = target_size(self.size, images, self.patch_size)
        self._check_fixed_size(size)
        with undisturbed(self.model), ExitStack() as stack:
            if self.positions == "reference":
                for handle in _hook_positions(self.model, size, self.patch_size):
                    stack.enter_context(handle)
            x = resize(images.to(device_of(self.model)), size)
            x = (x - self.mean.to(x.device)) / self.std.to(x.device)
            maps: list[Tensor] = self.model.forward_intermediates(
                x.to(dtype_of(self.model)),
                indices=[index],
                norm=norm,
                stop_early=True,
                intermediates_only=True,
            )
        return maps[0]

    def _check_fixed_size(self, size: tuple[int, int]) -> None:
        embed = getattr(self.model, "patch_embed", None)
        own = getattr(embed, "img_size", None)
        if own and getattr(embed, "strict_img_size", False) and tuple(own) != size:
            raise ValueError(
                f"`images` must have the size {own[0]} x {own[1]} that the model was made for; got "
                f"{size[0]} x {size[1]}. Create it with `dynamic_img_size=True`, or pass "
                f"`size={tuple(own)}`."
            )


def _hook_positions(model: Any, size: tuple[int, int], patch_size: tuple[int, int]) -> list[Any]:
    """Replace timm's position embeddings by the reference's, before the first block."""
    patches: list[Tensor] = []
    grid = (size[0] // patch_size[0], size[1] // patch_size[1])
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    table = resize_positions(model.pos_embed[0], grid, skip="count and square", prefix=prefix)

    def keep_patches(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        patches.append(output.flatten(1, 2) if output.ndim == 4 else output)

    def add_positions(_module: nn.Module, _args: tuple[Any, ...], _output: Tensor) -> Tensor:
        x = patches.pop()
        tokens = [model.cls_token, getattr(model, "reg_token", None)]
        lead = [token.expand(len(x), -1, -1) for token in tokens if token is not None]
        if model.no_embed_class:
            return torch.cat([*lead, x + table], dim=1)
        return torch.cat([*lead, x], dim=1) + table

    return [
        model.patch_embed.register_forward_hook(keep_patches),
        model.pos_drop.register_forward_hook(add_positions),
    ]
