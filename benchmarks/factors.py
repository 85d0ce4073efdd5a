"""The cost of one pass over attention held as factors, and why SDPA does not compute it.

    python benchmarks/factors.py [--device cpu|cuda] [--json OUT]

8 heads of 40 channels. A pass computes all rows in blocks and multiplies them by 21 vectors from
the left and one from the right, as a round of scaling or a Sinkhorn update does. Its floor is the
products and one exponential per entry and head, at the rates measured in the same run.
`scaled_dot_product_attention` computes only the product from the right, head by head. It cannot
compute the one from the left, which every mode needs, nor the mean over heads in an exponential.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F

from machine import machine
from ovss_refine import Attention
from problems import problem
from timing import floor, rates, seconds

HEADS, WIDTH, M = 8, 40, 21


def one_pass(attention: Attention, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Multiply from both sides in one pass: x [1, M, N] A, and A v [1, N, 1]."""
    left, right = torch.zeros_like(x), torch.empty_like(v)
    for rows, block in attention.blocks():
        left.baddbmm_(x[..., rows], block)
        right[:, rows] = block @ v
    return left, right


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Multiply v [1, N, 1] from the right: mean over heads of softmax(q k^T) v."""
    values = v[:, None].expand(-1, HEADS, -1, -1)
    return F.scaled_dot_product_attention(q, k, values, scale=1.0).mean(dim=1)


def main() -> None:
    """Check and time both, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("factors.py: this machine has no CUDA GPU that torch can use.")
    device, rate = args.device, rates(args.device)
    report: dict[str, object] = {"machine": machine(device), "rates": rate}
    for side in (64, 128):
        N = side * side
        attention = problem((side, side), M, (512, 512), device, heads=HEADS)[1]
        assert attention.factors is not None  # noqa: S101 - `heads` makes them
        q, k = (x[None] for x in attention.factors)
        x, v = torch.rand(1, M, N, device=device), torch.rand(1, N, 1, device=device)
        torch.testing.assert_close(
            one_pass(attention, x, v)[1], sdpa(q, k, v), rtol=1e-4, atol=1e-5
        )
        products = HEADS * WIDTH * N * N + (M + 1) * N * N
        report[f"N = {N}"] = {
            "pass": seconds(lambda a=attention, x=x, v=v: one_pass(a, x, v), device, 3),
            "floor": floor(rate, multiply_adds=products, exponentials=HEADS * N * N),
            "sdpa, right product": seconds(lambda q=q, k=k, v=v: sdpa(q, k, v), device, 3),
        }
    text = json.dumps(report, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
