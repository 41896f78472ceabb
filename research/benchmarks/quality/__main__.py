"""What a picture's quality costs: solvers, evaluations, intervals, reuse, few steps and arithmetic as curves.

    python -m research.benchmarks.quality   all settings; stop it when you like, run it again to go on
    python -m research.benchmarks.quality --share 0/2   every second setting: two shells, two cores
    python -m research.benchmarks.quality --quick   few people, the first settings only: minutes
    python -m research.benchmarks.quality --settings "dpmsolver++ 8, guidance 100-1000, reuse 2" "preset fast"
    python -m research.benchmarks.quality --page --out docs/performance   tables and curves of what there is
    python -m research.benchmarks.quality --list   the settings, in the order in which they are measured

The miniature draws people nobody was trained on and its judge, which no model ever saw, says who they are and what the
pictures show; every setting has the same people, prompts and noise. The first figures are of the release's way, to
which all others are compared in pairs; then comes one setting of each kind, then the rest. One JSON file a setting is
kept in --workdir. `quality/settings.py` says what the words of a setting mean.
"""

import argparse
import time
from collections.abc import Sequence

from feedface.common.errors import UserError, path_flag, run_cli
from feedface.common.shards import parse_shard
from research.benchmarks.measuring import ROOT, check_least
from research.benchmarks.quality.settings import PRIORITY, QUICK, RELEASE, Setting, parse

FULL_CASES = {"people": 100, "samples": 2, "fine_people": 40}
QUICK_CASES = {"people": 20, "samples": 1, "fine_people": 10}


def main(argv: Sequence[str] | None = None) -> None:
    args = read_arguments(argv)
    wanted = [parse(words) for words in args.settings or PRIORITY[: QUICK if args.quick else None]]
    if args.settings and RELEASE not in args.settings:
        wanted.insert(0, parse(RELEASE))  # what all are compared to
    if args.list:
        print("\n".join(setting.name for setting in wanted))
        return
    try:
        if not args.page:
            measure_all(wanted[args.share[0] :: args.share[1]], args)
    finally:  # a run that is stopped shows what it has
        if args.page or (args.workdir / parse(RELEASE).file_name).is_file():
            from research.benchmarks.quality.page import write_study

            print(f"written to {write_study(args.workdir, args.out)}")


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m research.benchmarks.quality", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", default="models/mini", help="a mini model (default models/mini)")
    parser.add_argument("--people", type=int, help="default 100, with --quick 20")
    parser.add_argument("--samples", type=int, help="prompts a person, a picture each (default 2, with --quick 1)")
    parser.add_argument("--references", type=int, default=1, help="pictures of a person that are shown (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture's noise (default 0)")
    parser.add_argument("--fine_people", type=int, help="of the fine solution (default 40, with --quick 10)")
    parser.add_argument("--fine_evaluations", type=int, default=200, help="of the fine solution (default 200)")
    parser.add_argument("--settings", nargs="+", metavar="WORDS", help="these only, beside the release's way")
    parser.add_argument("--share", type=parse_shard, default=(0, 1), help="k/n: only every n-th setting (default: all)")
    parser.add_argument("--batch_size", type=int, default=50, help="pictures at a time (default 50)")
    parser.add_argument("--device", help="cpu, cuda, … (default: a GPU when there is one)")
    parser.add_argument("--quick", action="store_true", help="few people, the first settings only")
    parser.add_argument("--page", action="store_true", help="measure nothing, tables and curves of what there is")
    parser.add_argument("--list", action="store_true", help="print the settings and do nothing")
    parser.add_argument(
        "--workdir", type=path_flag("--workdir"), help="default .cache/performance/quality, with --quick …-quick"
    )
    parser.add_argument("--out", type=path_flag("--out"), help="of the page (default: in the workdir)")
    args = parser.parse_args(argv)
    for name, value in (QUICK_CASES if args.quick else FULL_CASES).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    check_least(parser, args, people=2, samples=1, references=1, fine_people=1, batch_size=1)
    folder = ROOT / ".cache" / "performance"
    args.workdir = args.workdir or folder / ("quality-quick" if args.quick else "quality")
    args.out = args.out or args.workdir / "page"
    return args


def measure_all(wanted: list[Setting], args: argparse.Namespace) -> None:
    """Measure what is missing; settings that are not to be had here (no adapter, no int8) are named and left out."""
    from feedface.common.progress import say
    from feedface.evaluation.metrics import bootstrap
    from feedface.synthetic.train.common import config_from_flags
    from research.benchmarks.quality.measure import Bench

    config = config_from_flags("reproduction", "", [])
    config.model = args.model
    config.measure.update(
        people=args.people,
        samples_per_person=args.samples,
        references=args.references,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    bench = Bench(config, args.workdir, args.device, args.fine_evaluations, args.fine_people)
    spent = 0.0
    for place, setting in enumerate(wanted, 1):
        label = f"{place} of {len(wanted)}: {setting.name}"
        begun = time.perf_counter()
        try:
            if bench.is_done(setting):
                continue
            result = bench.measure(setting)
        except UserError as error:
            say(f"{label}: left out: {error}")
            continue
        spent += time.perf_counter() - begun
        people = result["people"]
        nearest, identity = bootstrap(people["nearest"]), bootstrap(people["other"])
        attributes = sum(people["attributes_shown"]) / sum(people["attributes_asked"])
        say(
            f"{label}: nearest {nearest.value:.1%}, identity {identity.value:.3f} [{identity.low:.3f}, "
            f"{identity.high:.3f}], attributes {attributes:.1%}, {result['seconds_a_picture']:.3f} s a picture; "
            f"{spent / 60:.0f} min so far"
        )


if __name__ == "__main__":
    run_cli(main)
