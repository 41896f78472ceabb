"""The claims that rest on `plan`'s measurements: what the paper says, what was measured, whether it holds.

Each function writes its plots beside the page and returns its section as Markdown; its docstring is the section's
title where it cannot be written. Columns, the same everywhere:
identity: cosine of the judge's embeddings with other pictures of the person; nearest: share of pictures that the judge
takes for the person among all people measured; attributes: share of what prompts name that is shown; background: mean
absolute difference outside face and hair to the picture without a face, in 1/255.
"""

from collections.abc import Sequence
from pathlib import Path

import ml_collections

from feedface.evaluation import plots
from feedface.evaluation.metrics import Figure
from research.reproduction import plan
from research.reproduction.results import Check, Results, checks_table, number, share, table
from research.reproduction.runs import FEWER_PEOPLE, LOSSES, SITES

COLUMNS = {
    "other": ("identity", number(3)),
    "nearest": ("nearest", share),
    "attributes": ("attributes", share),
    "background_pixels": ("background", lambda figure: number(2)(scaled_by(figure, 255))),
}
IDENTITY, FACE_LABEL = "other", "identity: similarity to another picture"


def scaled_by(figure: Figure, factor: float) -> Figure:
    return Figure(figure.value * factor, figure.low * factor, figure.high * factor)


def rows_of(results: Results, names: dict[str, str], columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """A table, a row a setting: label -> result's name."""
    rows = []
    for label, name in names.items():
        has = results.get(name)["people"]
        cells = [
            COLUMNS[key][1](results.figure(name, key)) if key == "attributes" or key in has else "–" for key in columns
        ]
        rows.append([label, *cells])
    return table(["setting", *(COLUMNS[key][0] for key in columns)], rows)


def losses(results: Results, config: ml_collections.ConfigDict, folder: Path) -> str:
    """1. The regularization mask loss."""
    last, seeds = config.train.measured_at[-1], config.train.seeds

    def names(loss: str, samples: int = last) -> list[str]:
        return [plan.at(f"{loss}-seed{seed}", samples) for seed in seeds]

    def gap(other: str, key: str, samples: int = last, sign: int = 1) -> Figure:
        pair = (names("regularization", samples), names(other, samples))
        return results.difference_over_seeds(*(pair if sign > 0 else pair[::-1]), key)

    rows = []
    for samples in (last // 2, last):
        for loss in LOSSES:
            cells = [write(results.over_seeds(names(loss, samples), key)) for key, (_, write) in COLUMNS.items()]
            rows.append([f"{loss}, {samples} samples", *cells])
    points = {
        loss: [(samples, results.over_seeds(names(loss, samples), IDENTITY)) for samples in (last // 2, last)]
        for loss in LOSSES
    }
    plots.curves(folder / "losses_identity.png", points, "samples seen", FACE_LABEL)
    background = {
        loss: {"change": scaled_by(results.over_seeds(names(loss), "background_pixels"), 255)} for loss in LOSSES
    }
    plots.bars(folder / "losses_background.png", background, "change outside the face, 1/255")
    checks = [
        Check.of("the mask loss changes the background more", gap("mask", "background_pixels", sign=-1)),
        Check.of("the standard loss does too", gap("standard", "background_pixels", sign=-1)),
        Check.of("text is kept at least as well as with the mask loss", gap("mask", "attributes")),
        Check.of("… as with the standard loss", gap("standard", "attributes")),
        Check.of("identity at half time is at least the mask loss's", gap("mask", IDENTITY, last // 2)),
        Check.of("… the standard loss's", gap("standard", IDENTITY, last // 2)),
        Check.of("identity at the end is at least the mask loss's", gap("mask", IDENTITY)),
        Check.of("… the standard loss's", gap("standard", IDENTITY)),
    ]
    return "\n".join(
        [
            "## 1. The regularization mask loss (Fig. 2 and 3, App. B.1)",
            "",
            "The paper: bound to the frozen model's prediction outside the face, the model keeps background and text, "
            "and converges faster than with the standard loss or the mask loss alone.",
            "",
            f"{len(seeds)} training seeds a loss, the same for each; intervals over people and seeds.",
            "",
            table(["loss", *(title for title, _ in COLUMNS.values())], rows),
            "",
            checks_table(checks, 4),
            "",
            f"![identity by samples seen]({folder.name}/losses_identity.png)",
            f"![change of the background]({folder.name}/losses_background.png)",
        ]
    )


def references(results: Results, config: ml_collections.ConfigDict, folder: Path) -> str:
    """2. Several pictures of the person."""
    names = {f"{count}, {pool}": plan.pooled(count, pool) for pool in ("concat", "mean") for count in plan.COUNTS}
    names.pop("1, mean")
    points = {
        label: [(count, results.figure(plan.pooled(count, pool), IDENTITY)) for count in plan.COUNTS]
        for label, pool in (("concatenated", "concat"), ("averaged", "mean"))
    }
    plots.curves(folder / "references.png", points, "pictures of the person", FACE_LABEL)
    four, one = plan.pooled(4, "concat"), plan.DEFAULT
    checks = [
        Check.of("four pictures give more identity than one", results.difference(four, one, IDENTITY)),
        Check.of("five give more than four", results.difference(plan.pooled(5, "concat"), four, IDENTITY)),
        Check.of(
            "four concatenated are at least as good as averaged",
            results.difference(four, plan.pooled(4, "mean"), IDENTITY),
        ),
    ]
    return "\n".join(
        [
            "## 2. Several pictures of the person (§1, App. B.3.1)",
            "",
            "The paper: further pictures of the face improve its consistency; their features are concatenated.",
            "",
            rows_of(results, {"no face": plan.BASE, **names}),
            "",
            checks_table(checks),
            "",
            f"![identity by number of pictures]({folder.name}/references.png)",
        ]
    )


def trade(results: Results, config: ml_collections.ConfigDict, folder: Path) -> str:
    """3. Guidance and the strength of the face."""
    scales = {f"face scale {scale:g}": plan.scaled(scale) for scale in plan.FACE_SCALES}
    guidances = {f"guidance {guidance:g}": plan.guided(guidance) for guidance in plan.GUIDANCES}
    unconds = {f"unconditional: {mode}": plan.unconditional(mode) for mode in plan.UNCONDS}
    both = {**scales, **guidances}
    points = {
        label: (results.figure(name, "attributes"), results.figure(name, IDENTITY)) for label, name in both.items()
    }
    plots.scatter(folder / "trade.png", points, "attributes shown", FACE_LABEL, connect=[list(scales), list(guidances)])
    strong, weak = plan.scaled(plan.FACE_SCALES[-1]), plan.scaled(plan.FACE_SCALES[0])
    high, low = plan.guided(plan.GUIDANCES[-2]), plan.guided(plan.GUIDANCES[0])
    checks = [
        Check.of("a stronger face (2 against 0.5) has more identity", results.difference(strong, weak, IDENTITY)),
        Check.of("… and costs text", results.difference(weak, strong, "attributes")),
        Check.of("guidance 6, the paper's, has more identity than none", results.difference(high, low, IDENTITY)),
        Check.of("… and shows more of the prompt", results.difference(high, low, "attributes")),
        Check.of(
            "the paper's unconditional half (zero face vector) is at least as good for identity as the release's "
            "(noise for text, no face)",
            results.difference(plan.unconditional("paper"), plan.unconditional("true_uncond"), IDENTITY),
        ),
    ]
    return "\n".join(
        [
            "## 3. Guidance and the strength of the face (App. B.3.2)",
            "",
            "The paper: guidance of scale 5 (guidance 6 here) for face and text at once; text is traded for the face "
            "(App. D). Guidance g is that of ε_u + g (ε_c − ε_u); a row differs from the default (guidance "
            f"{plan.DEFAULTS['guidance']:g}, face scale {plan.DEFAULTS['face_scale']:g}, "
            f"{plan.DEFAULTS['uncond']}) in one setting.",
            "",
            rows_of(results, {**scales, **guidances, **unconds}),
            "",
            checks_table(checks),
            "",
            f"![face against text]({folder.name}/trade.png)",
        ]
    )


def sites(results: Results, config: ml_collections.ConfigDict, folder: Path) -> str:
    """4. Where the control acts."""
    last, seed = config.train.measured_at[-1], config.train.seeds[0]
    default = plan.at(f"regularization-seed{seed}", last)
    names = {f"sites: {name}": plan.at(f"sites-{name.replace(' ', '-')}", last) for name in list(SITES)[1:]}
    names = {f"sites: default ({', '.join(SITES['default'])})": default, **names}
    names["sites: default, control sees the block's input"] = plan.at("control-input", last)
    rows = []
    for label, name in names.items():
        millions = results.get(name)["parameters"] / 1e6
        figure = results.figure(name, IDENTITY)
        cells = [write(results.figure(name, key)) for key, (_, write) in COLUMNS.items()]
        rows.append([label, f"{millions:.2f} M", number(3)(scaled_by(figure, 1 / millions)), *cells])
    points = {
        label.removeprefix("sites: "): (_exact(results.get(name)["parameters"] / 1e6), results.figure(name, IDENTITY))
        for label, name in names.items()
    }
    plots.scatter(folder / "sites.png", points, "trained parameters, millions", FACE_LABEL)
    name = {key.removeprefix("sites: "): value for key, value in names.items()}
    checks = [
        Check.of(
            "every other block is at least as good as all",
            results.difference(name["every other"], name["all"], IDENTITY),
        ),
        Check.of(
            "blocks on both sides are at least as good as in-blocks only",
            results.difference(name["every other"], name["in only"], IDENTITY),
        ),
        Check.of("… as out-blocks only", results.difference(name["every other"], name["out only"], IDENTITY)),
        Check.of(
            "seeing the block's output (release) is at least as good as its input (Fig. 1)",
            results.difference(default, plan.at("control-input", last), IDENTITY),
        ),
    ]
    return "\n".join(
        [
            "## 4. Where the control acts (Fig. 1 and the release)",
            "",
            "The paper draws a control block that sees its origin block's input; the release gives it the output, at "
            "every other block. Nothing in the paper compares sites: the sentences below are what its choice implies. "
            f"One training seed, {last} samples.",
            "",
            table(["", "parameters", "identity a million", *(title for title, _ in COLUMNS.values())], rows),
            "",
            checks_table(checks),
            "",
            f"![identity by parameters]({folder.name}/sites.png)",
        ]
    )


def efficiency(results: Results, config: ml_collections.ConfigDict, folder: Path) -> str:
    """5. Few samples, few people."""
    seeds, seen = config.train.seeds, config.train.measured_at
    rows, points = [], []
    for samples in seen:
        names = [plan.at(f"regularization-seed{seed}", samples) for seed in seeds]
        rows.append([f"{samples}", *(write(results.over_seeds(names, key)) for key, (_, write) in COLUMNS.items())])
        points.append((samples, results.over_seeds(names, IDENTITY)))
    plots.curves(folder / "samples_seen.png", {"regularization": points}, "samples seen", FACE_LABEL)
    all_people = plan.at(f"regularization-seed{seeds[0]}", seen[-1])
    people = {f"{count}": plan.at(f"people-{count}", seen[-1]) for count in FEWER_PEOPLE}
    people[f"{config.world.identities}"] = all_people
    by_people = [(int(count), results.figure(name, IDENTITY)) for count, name in people.items()]
    plots.curves(folder / "people.png", {"": by_people}, "people trained on", FACE_LABEL, logx=True)
    first, final = (
        [plan.at(f"regularization-seed{seed}", samples) for seed in seeds] for samples in (seen[0], seen[-1])
    )
    fewest, more = people[f"{FEWER_PEOPLE[0]}"], people[f"{FEWER_PEOPLE[-1]}"]
    checks = [
        Check.of(
            f"{seen[-1]} samples give more identity than {seen[0]}",
            results.difference_over_seeds(final, first, IDENTITY),
        ),
        Check.of(
            f"{config.world.identities} people give more than {FEWER_PEOPLE[0]}",
            results.difference(all_people, fewest, IDENTITY),
        ),
        Check.of(
            f"{FEWER_PEOPLE[-1]} people are at least as good as {config.world.identities}",
            results.difference(more, all_people, IDENTITY),
        ),
    ]
    return "\n".join(
        [
            "## 5. Few samples, few people (Table 2)",
            "",
            "The paper: 41 K pictures and 4.8 M samples suffice, 0.4 % and 3.75 % of what Face0 uses. In the "
            "miniature: "
            "identity against samples seen, and against the number of people (ten pictures each) at "
            f"{seen[-1]} samples.",
            "",
            table(["samples seen", *(title for title, _ in COLUMNS.values())], rows),
            "",
            rows_of(results, {f"{count} people": name for count, name in people.items()}),
            "",
            checks_table(checks),
            "",
            f"![identity by samples seen]({folder.name}/samples_seen.png)",
            f"![identity by people]({folder.name}/people.png)",
        ]
    )


def _exact(value: float) -> Figure:
    return Figure(value, value, value)
