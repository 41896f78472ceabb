"""Measure how well models keep the person and follow the prompt.

The paper's protocol, on cases in the authors' JSON schema (see json_examples/; pictures relative to file or --data):
    python evaluate.py --protocol ppr10k --data PPR10K/360p --cases cases --model models/feedface-v1 --out outputs/p
    accelerate launch --num_processes 8 evaluate.py --protocol ppr10k --data PPR10K/360p --cases cases --model …
The same in the mini world, on people nobody trained on, in minutes on a CPU:
    python evaluate.py --protocol mini --model models/mini --out outputs/evaluation
Systems compared, on the same people, prompts and seeds: model folders, of any backbone and method; JSON lists of
{"name", "model", "ckpt_path"?, "method"?, "pool"?, "references"?, "settings"?: {"steps", "guidance", "face_scale",
"uncond", "size"}}, where the method "feedface+adaface" joins those of model and ckpt_path; or both. Each is held
against the first, and against the first that is shown as many references:
    python evaluate.py --protocol mini --systems models/mini workdir/mini/checkpoints/last --out outputs/comparison
    python evaluate.py --protocol mini --systems systems.json --references 1 --out outputs/comparison

Left in --out: report.html, table.md and table.tex (the paper's Table 1), scores.json (figures with intervals),
scores.jsonl (a line a picture), sheet.png, every picture, and base pictures, drawn without a face. The same command
goes on where it was stopped and makes again what was deleted.
Exit codes: 0, 2 for bad input (also where single cases could not be taken; the others are done), 130 for Ctrl-C.
"""

from collections.abc import Sequence

from feedface.common.errors import run_cli
from feedface.evaluation import cli as evaluation


def main(argv: Sequence[str] | None = None) -> int:
    return evaluation.main(argv, description=__doc__)


def cli() -> None:
    run_cli(main)
