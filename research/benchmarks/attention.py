"""What attention costs on this machine, in float32 and bfloat16, by how queries, keys and values lie in memory.

    OMP_NUM_THREADS=1 python -m research.benchmarks.attention
    OMP_NUM_THREADS=1 python -m research.benchmarks.attention --rows 8 --tokens 93 --heads 4      # the miniature's

"views" are those of one product of 3 D columns, as our U-ViT hands them to `scaled_dot_product_attention`; "copied" are
the same, made contiguous first, the copy counted; "apart" come from three products, as a U-Net's do; "plain" is
softmax(q k') v written out, on the views. The matrix product beside them says what the machine can do. All take turns.
Letters: B rows, L tokens, H heads, D their width.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from feedface.common.device import pick_device
from feedface.common.errors import run_cli
from research.benchmarks.measuring import check_least, median, time_in_turns

DTYPES = (torch.float32, torch.bfloat16)
Action = Callable[[int], object]


def variants(rows: int, tokens: int, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> dict:
    """name -> (action, multiplications and additions in it)."""
    made = {"dtype": dtype, "device": device}
    wide = heads * width
    x, weight = torch.randn(rows, tokens, wide, **made), torch.randn(3 * wide, wide, **made) * wide**-0.5
    joined = F.linear(x, weight)
    views = joined.view(rows, tokens, 3, heads, width).permute(2, 0, 3, 1, 4).unbind()
    apart = [part.contiguous().unflatten(-1, (heads, width)).transpose(1, 2) for part in joined.chunk(3, dim=-1)]
    attention, product = 4 * rows * heads * tokens**2 * width, 6 * rows * tokens * wide**2

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q * width**-0.5) @ k.transpose(-1, -2)).softmax(dim=-1) @ v

    return {
        "views": (lambda _: F.scaled_dot_product_attention(*views), attention),
        "copied": (lambda _: F.scaled_dot_product_attention(*(part.contiguous() for part in views)), attention),
        "apart": (lambda _: F.scaled_dot_product_attention(*apart), attention),
        "plain": (lambda _: plain(*views), attention),
        "the product": (lambda _: F.linear(x, weight), product),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1105, help="the full U-ViT's at 512 px (default)")
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    check_least(parser, options, rows=1, tokens=1, heads=1, width=1, rounds=1)
    device = pick_device(options.device)
    sizes = (options.rows, options.tokens, options.heads, options.width)
    chosen = {(dtype, name): made for dtype in DTYPES for name, made in variants(*sizes, dtype, device).items()}
    with torch.inference_mode():
        rows = time_in_turns({key: action for key, (action, _) in chosen.items()}, device, options.rounds, warmup=1)
    print("| | ms, float32 | GFLOP/s | ms, bfloat16 | GFLOP/s |\n|---|---:|---:|---:|---:|")
    for name in dict.fromkeys(name for _, name in chosen):
        cells = []
        for dtype in DTYPES:
            seconds = median(rows[dtype, name], "cpu_seconds" if device.type == "cpu" else "seconds")
            cells += [f"{1e3 * seconds:.1f}", f"{chosen[dtype, name][1] / seconds / 1e9:.0f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run_cli(main)
