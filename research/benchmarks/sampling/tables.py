"""Markdown tables out of what `sampling --out` wrote, for docs/performance.md.

python -m research.benchmarks.sampling.tables mini.json full.json [--out tables.md]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from feedface.common.errors import run_cli
from feedface.common.json_files import load_json
from research.benchmarks.measuring import median, ratio, written
from research.pages import columns_table, write_page

GROWS = {"samples": "pictures", "references": "references", "pixels": "size_px", "people": "people"}  # and their column
VARIANTS = {
    "": "{title}",
    "evaluations": "{evaluations}",
    "with both halves": "{unconditional}",
    "backbone passes": "{backbone_passes:.1f}",
    "control passes": "{control_passes:.1f}",
    "TFLOP": "{tflop:.3g}",
    "s a picture": "{time}",
    "× first": "{speedup:.1f}",
    "× first, CPU time": "{speedup_by_cpu:.1f}",
    "peak GiB": "{peak_gib:.2f}",
}
PARTS = {"composed of": "{title}: {part}", "times": "{count}", "s each": "{seconds:.3g}", "share": "{share:.0%}"}
SCALING = {"s a picture": "{time}", "over the first": "{over:.2f}", "TFLOP a picture": "{tflop:.3g}"}
BATCHES = {"s": "{time}", "pictures/s": "{rate:.2f}", "over the first": "{over_first:.2f}"}


def tables(result: dict) -> list[str]:
    """What was measured where, then a table for each measure that `result` has."""
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    sizes = " and ".join(f"{name} {count / 1e6:.1f} M" for name, count in result["parameters"].items())
    work = f"{result['image_px']} px, {result['work']['pictures']} picture(s) at a time"
    variants = list(result["variants"].values())
    found = [f"{result['model']}: {sizes} parameters; {work}; {machine}"]
    found.append(columns_table(VARIANTS, [_described(row, variants[0]) for row in variants]))
    if parts := [part for row in variants for part in _parts(row)]:
        found.append(columns_table(PARTS, parts))
    for grows, rows in result.get("scaling", {}).items():
        described = [_described(row, rows[0]) for row in rows]
        found.append(columns_table({grows: f"{{{GROWS[grows]}}}", **SCALING}, described))
    if "batches" in result:
        rows = [{"name": name, "time": written(row, ".3g"), **row} for name, row in result["batches"].items()]
        for row in rows:
            row["rate"] = row["pictures"] / median(row) if row.get("seconds") else None
        found.append(columns_table({f"{rows[0]['pictures']} pictures": "{name}", **BATCHES}, rows))
    return found + (_rate(result["rate"]) if "rate" in result else [])


def _described(row: dict, first: dict) -> dict:
    """A row with what follows from it; ratios are to the first one."""
    speedup = ratio(first, row)
    return row | {
        "tflop": row["tflop_sampling"] + row["tflop_decoder"],
        "time": written(row, ".3g"),
        "speedup": speedup,
        "over": None if speedup is None else 1 / speedup,
        "speedup_by_cpu": ratio(first, row, "cpu_seconds"),
    }


def _parts(row: dict) -> list[dict]:
    """What a composed time is made of."""
    parts = row.get("parts", {})
    total = sum(part["count"] * part["seconds"] for part in parts.values())
    return [
        {"title": row["title"], "part": name, **part, "share": part["count"] * part["seconds"] / total}
        for name, part in parts.items()
    ]


def _rate(rate: dict) -> list[str]:
    peak = f"share of {rate['multiplication_tflops']:.3g}, one large product"
    steps = {"pictures in a guided step": "{name}", "s": "{time}", "TFLOP/s": "{tflops:.3g}", peak: "{share:.0%}"}
    rows = [
        row | {"name": f"{row['pictures']}{', compiled' * row['compiled']}", "time": written(row, ".3g")}
        for row in rate["steps"]
    ]
    seconds = rate["profile"]["seconds"]
    total = sum(seconds.values())
    sorts = [{"sort": sort, "seconds": value, "share": value / total} for sort, value in seconds.items()]
    head = f"a step of {rate['profile']['pictures']}, profiled"
    return [
        columns_table(steps, rows),
        columns_table({head: "{sort}", "s": "{seconds:.3g}", "share": "{share:.1%}"}, sorts),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", metavar="JSON", help="what sampling --out wrote")
    parser.add_argument("--out", type=Path, help="a Markdown file to write (default: print)")
    args = parser.parse_args(argv)
    parts = []
    for file in args.results:
        result = load_json(file)
        parts += [f"`python -m research.benchmarks.sampling {' '.join(result['command'])}`", *tables(result)]
    if args.out is None:
        print("\n\n".join(parts))
    else:
        write_page(args.out, "\n\n".join(parts))


if __name__ == "__main__":
    run_cli(main)
