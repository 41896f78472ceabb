"""Markdown tables out of what `sampling.py --out` wrote, for docs/performance.md.

python research/benchmarks/performance_tables.py mini.json full.json [--out tables.md]
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from feedface.common.errors import UserError, run_cli
from feedface.common.files import atomic_file

GROWS = {"samples": "pictures", "references": "references", "pixels": "size_px", "people": "people"}  # and their column


def tables(result: dict) -> list[str]:
    """Lines: what was measured where, then a table for each measure that `result` has."""
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    sizes = " and ".join(f"{name} {count / 1e6:.1f} M" for name, count in result["parameters"].items())
    lines = [
        f"{result['model']}: {sizes} parameters; {result['image_px']} px, {result['work']['pictures']} picture(s) at a "
        f"time; {machine}",
        *variants_table(result["variants"]),
    ]
    if any("parts" in row for row in result["variants"].values()):
        lines += parts_table(result["variants"])
    for grows, rows in result.get("scaling", {}).items():
        lines += scaling_table(grows, rows)
    if "batches" in result:
        lines += batches_table(result["batches"])
    if "rate" in result:
        lines += rate_tables(result["rate"])
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """With an empty line before it; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["", *("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))]


def variants_table(variants: dict[str, dict]) -> list[str]:
    """Ratios are to the first row. With `parts`, times are sums of measured parts."""
    first = next(iter(variants.values()))
    rows = []
    for row in variants.values():
        rows.append(
            [
                row["title"],
                str(row["evaluations"]),
                str(row["unconditional"]),
                _number(row["uvit_passes"], ".1f"),
                _number(row["control_passes"], ".1f"),
                _number(row["tflop_sampling"] + row["tflop_decoder"], ".3g"),
                _number(_median(row, "seconds"), ".3g") or ("does not fit" if "out_of_memory" in row else ""),
                _number(_ratio(first, row, "seconds"), ".1f"),
                _number(_ratio(first, row, "cpu_seconds"), ".1f"),
                _number(row.get("peak_gib"), ".2f"),
            ]
        )
    head = [
        "", "evaluations", "with both halves", "U-ViT passes", "control passes", "TFLOP", "s a picture",
        "× first", "× first, CPU time", "peak GiB",
    ]  # fmt: skip
    return table(head, rows)


def parts_table(variants: dict[str, dict]) -> list[str]:
    """What the composed times are made of."""
    rows = []
    for row in variants.values():
        parts = row.get("parts", {})
        total = sum(part["count"] * part["seconds"] for part in parts.values())
        for name, part in parts.items():
            share = part["count"] * part["seconds"] / total
            rows.append([f"{row['title']}: {name}", str(part["count"]), f"{part['seconds']:.3g}", f"{share:.0%}"])
    return table(["composed of", "times", "s each", "share"], rows)


def scaling_table(grows: str, rows: Sequence[dict]) -> list[str]:
    """Ratios are to the first row."""
    cells = [
        [
            str(row[GROWS[grows]]),
            _number(_median(row, "seconds"), ".3g") or "does not fit",
            _number(_inverse(_ratio(rows[0], row, "seconds")), ".2f"),
            _number(row["tflop_sampling"] + row["tflop_decoder"], ".3g"),
        ]
        for row in rows
    ]
    return table([grows, "s a picture", "over the first", "TFLOP a picture"], cells)


def batches_table(ways: dict[str, dict]) -> list[str]:
    cells = [
        [
            name,
            _number(_median(row, "seconds"), ".3g"),
            _number(row["pictures"] / _median(row, "seconds"), ".2f"),
            _number(row["over_first"], ".2f"),
        ]
        for name, row in ways.items()
    ]
    count = next(iter(ways.values()))["pictures"]
    return table([f"{count} pictures", "s", "pictures/s", "over the first"], cells)


def rate_tables(rate: dict) -> list[str]:
    cells = [
        [
            f"{row['pictures']}{', compiled' if row['compiled'] else ''}",
            _number(_median(row, "seconds"), ".3g") or "does not fit",
            _number(row.get("tflops"), ".3g"),
            _number(row.get("share"), ".0%"),
        ]
        for row in rate["steps"]
    ]
    peak = f"share of {rate['multiplication_tflops']:.3g}, one large product"
    lines = table(["pictures in a guided step", "s", "TFLOP/s", peak], cells)
    total = sum(rate["profile"]["seconds"].values())
    shares = [[sort, f"{value:.3g}", f"{value / total:.1%}"] for sort, value in rate["profile"]["seconds"].items()]
    return lines + table([f"a step of {rate['profile']['pictures']}, profiled", "s", "share"], shares)


def _median(row: dict, key: str) -> float | None:
    return statistics.median(row[key]) if row.get(key) else None


def _ratio(first: dict, row: dict, key: str) -> float | None:
    ours, theirs = _median(row, key), _median(first, key)
    return None if ours is None or theirs is None else theirs / ours


def _inverse(value: float | None) -> float | None:
    return None if value is None else 1 / value


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", metavar="JSON", help="what sampling.py --out wrote")
    parser.add_argument("--out", type=Path, help="a Markdown file to write (default: print)")
    args = parser.parse_args()
    parts = []
    for file in args.results:
        try:
            result = json.loads(file.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"{file}: not a result of sampling.py --out: {error}") from None
        command = f"`python research/benchmarks/sampling.py {' '.join(result['command'])}`"
        parts.append("\n".join([command, "", *tables(result)]))
    text = "\n\n".join(parts) + "\n"
    if args.out is None:
        print(text, end="")
        return
    with atomic_file(args.out) as path:
        path.write_text(text)


if __name__ == "__main__":
    run_cli(main)
