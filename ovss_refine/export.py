"""The refinement as one graph of tensors, for `torch.export` and for ONNX.

The graph is traced from the code that `refine` runs, without its checks: input that `refine` would
refuse gives a wrong map.

Axes: B images, K prompts, M classes, (h, w) grid of the logits, (gh, gw) grid of the attention,
(H, W) pixels. The graph takes any size of each.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ovss_refine.attention import Attention
from ovss_refine.config import RefineConfig
from ovss_refine.folders.files import check_replaceable, write_whole
from ovss_refine.folders.paths import local_path
from ovss_refine.method.steps import refine_confidence, weigh_logits
from ovss_refine.registry import require
from ovss_refine.tensors.cells import resize
from ovss_refine.upsamplers.bands import EXPORTED
from ovss_refine.upsamplers.names import name_of

OPSET = 18
OUTPUTS = ("labels", "discrepancy", "kept", "seeds", "scores")
# Sizes for tracing. No two are equal, so that no axis is taken for another.
EXAMPLE = {"B": 2, "K": 5, "h": 7, "w": 11, "gh": 6, "gw": 9, "H": 23, "W": 41}


class RefineModule(nn.Module):
    """`refine` as a module without parameters, with tensors for input and output.

    Args:
        config: the options.
        early_stop: whether the loops of the optimal path and of maximum velocity stop at
            convergence, as those of `refine` do. If not, they always take `sinkhorn_iterations`
            and `max_steps` steps: the same result, more slowly, from a graph without loops.

    Raises:
        ValueError: if the upsampler is none of "jbu", "bilinear" and "guided".
    """

    def __init__(self, config: RefineConfig, *, early_stop: bool = True) -> None:
        """Store the options; ValueError if their upsampler has no graph."""
        super().__init__()
        if config.upsampler not in EXPORTED:
            raise ValueError(
                f"`upsampler` must be one of {list(EXPORTED)} in a graph; got "
                f"{name_of(config.upsampler)!r}."
            )
        self.config = config
        self.early_stop = early_stop

    def forward(
        self, logits: Tensor, attention: Tensor, image: Tensor, prompt_index: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Refine.

        Args:
            logits: [B, K, h, w] float32, K >= 2.
            attention: [B, gh, gw, gh, gw] float32; `attention[b, y, x]` is the attention of the
                patch in row y, column x to every patch; >= 0, summing to one.
            image: [B, 3, H, W] float32 in [0, 1].
            prompt_index: [K] int64 class of each prompt, in [0, M); None: one class for each.

        Returns:
            What `RefineResult` holds, in that order: labels [B, H, W] int64, discrepancy
            [B, M, gh, gw] float32, kept [B, M] bool, seeds [B, M, gh, gw] bool; with
            `config.keep_scores` also scores [B, M, H, W] float32.
        """
        _, gh, gw, _, _ = attention.shape
        held = _Unchecked(attention.flatten(3).flatten(1, 2), (gh, gw), early_stop=self.early_stop)
        weighed = weigh_logits(resize(logits, gh, gw).flatten(2), prompt_index, self.config)
        result = refine_confidence(weighed, held, image, self.config)
        tensors = (getattr(result, name) for name in OUTPUTS)
        return tuple(x for x in tensors if x is not None)


@dataclass(frozen=True, slots=True, eq=False)
class _Unchecked(Attention):
    """Attention without checks: there are no values while a graph is traced."""

    early_stop: bool = True

    def __post_init__(self) -> None:
        """Check nothing."""

    @property
    def test_every(self) -> int:
        """As in `Attention`; 0: never."""
        return int(self.early_stop)


def export_program(
    config: RefineConfig, *, prompt_index: bool = False, early_stop: bool = True
) -> ExportedProgram:
    """Trace a `RefineModule` with `torch.export`.

    Args:
        config: the options.
        prompt_index: whether the program takes a `prompt_index`, which it then requires.
        early_stop: see `RefineModule`.

    Returns:
        A program whose `module()` takes the arguments of `RefineModule.forward`, of any sizes.

    Raises:
        ValueError: as `RefineModule` does.
    """
    axes = {"logits": "B K h w", "attention": "B gh gw gh gw", "image": "B C H W"}
    inputs = {
        name: torch.rand([EXAMPLE.get(axis, 3) for axis in spec.split()], dtype=torch.float32)
        for name, spec in axes.items()
    }
    if prompt_index:
        axes["prompt_index"] = "K"
        inputs["prompt_index"] = torch.arange(EXAMPLE["K"])
    dims = {axis: Dim(axis, min=3 if axis in "HW" else 1) for axis in EXAMPLE}
    shapes = {
        name: {i: dims[axis] for i, axis in enumerate(spec.split()) if axis in dims}
        for name, spec in axes.items()
    }
    module = RefineModule(config, early_stop=early_stop).eval()
    with torch.no_grad():
        return torch.export.export(module, (), inputs, dynamic_shapes=shapes, strict=False)


def export_onnx(
    path: str | Path, config: RefineConfig, *, prompt_index: bool = False, early_stop: bool = True
) -> None:
    """Write the refinement as an ONNX file of opset 18.

    Its inputs have the names of the arguments of `RefineModule.forward`, its outputs those of the
    fields of `RefineResult`.

    Args:
        path: the file, replaced if it exists.
        config: the options.
        prompt_index: see `export_program`.
        early_stop: see `RefineModule`.

    Raises:
        ValueError: as `RefineModule` does.
        ModuleNotFoundError: if the extra `export` is not installed.
        FileNotFoundError: if the folder does not exist.
        OSError: if the file cannot be written.
    """
    for module in ("onnx", "onnxscript"):
        require(module, "export")
    path = local_path("path", path)
    if not path.parent.is_dir():  # before tracing, which may take a minute
        raise FileNotFoundError(f"`path` must be in an existing folder; got `{path}`.")
    check_replaceable(path)
    program = export_program(config, prompt_index=prompt_index, early_stop=early_stop)
    outputs = OUTPUTS if config.keep_scores else OUTPUTS[:-1]
    graph = torch.onnx.export(
        program, (), opset_version=OPSET, output_names=outputs, dynamo=True, verbose=False
    )
    assert graph is not None  # noqa: S101 - without a file name it returns the graph
    content = graph.model_proto.SerializeToString()
    write_whole(path, lambda file: file.write(content))
