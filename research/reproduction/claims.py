"""The sections of the page: what is compared, which sentences follow, what is plotted. `page.md.jinja` has the words.

Each function writes its plots beside the page and returns the values of the template's block of its name; its docstring
is the section's title where it cannot be written. Columns, the same everywhere:
identity: cosine of the judge's embeddings with other pictures of the person; nearest: share of pictures that the judge
takes for the person among all people measured; attributes: share of what prompts name that is shown; background: mean
absolute difference outside face and hair to the picture without a face, in 1/255.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from feedface.common.files import atomic_file
from feedface.evaluation.metrics import Figure
from research import plots
from research.pages import decimal, percent, table
from research.reproduction import plan
from research.reproduction.limits import markdown
from research.results import ATTRIBUTES, Check, Names, ResultStore, scaled

IDENTITY, BACKGROUND, FACE_LABEL = "other", "background_pixels", "identity: similarity to another picture"
COLUMNS = {
    IDENTITY: ("identity", decimal),
    "nearest": ("nearest", percent),
    ATTRIBUTES: ("attributes", percent),
    BACKGROUND: ("background", lambda figure: decimal(scaled(figure, 255), 2)),
}
DREAMBOOTH, LIMITS = "dreambooth", "limits"  # results that other programs measure
SYSTEMS = {
    "no face": "no face",
    "dreambooth": "DreamBooth, LoRA",
    "face-controlnet": "FeedFace",
    "references": "the references themselves",
}
Values = dict[str, Any]


def cells(results: ResultStore, names: Names) -> list[str]:
    """The columns of one row."""
    one = results.get(names if isinstance(names, str) else names[0])["people"]
    known = [key for key in COLUMNS if key in one or key == ATTRIBUTES]
    return [COLUMNS[key][1](results.figure(names, key)) if key in known else "–" for key in COLUMNS]


def settings_table(results: ResultStore, head: str, names: Mapping[str, Names]) -> str:
    """A row a setting: label -> its result, or one for each seed."""
    titles = [title for title, _ in COLUMNS.values()]
    return table([head, *titles], [[label, *cells(results, of)] for label, of in names.items()])


def losses(results: ResultStore, config: ml_collections.ConfigDict, folder: Path) -> Values:
    """1. The regularization mask loss."""
    last, seeds = config.train.measured_at[-1], config.train.seeds
    half = last // 2

    def names(loss: str, samples: int = last) -> list[str]:
        return [plan.at(plan.of_loss(loss, seed), samples) for seed in seeds]

    def curve(loss: str) -> list[tuple[int, Figure]]:
        return [(samples, results.figure(names(loss, samples), IDENTITY)) for samples in (half, last)]

    ours, mask, standard = map(names, plan.LOSSES)
    ours_half, mask_half, standard_half = (names(loss, half) for loss in plan.LOSSES)
    rows = {f"{loss}, {samples} samples": names(loss, samples) for samples in (half, last) for loss in plan.LOSSES}
    rows[f"{plan.LOSSES[0]}, {last} samples, timesteps weighed alike"] = plan.at(plan.ALIKE, last)
    changes = {loss: {"change": scaled(results.figure(names(loss), BACKGROUND), 255)} for loss in plan.LOSSES}
    curves = {loss: curve(loss) for loss in plan.LOSSES}
    plots.curves(folder / "losses_identity.png", curves, "samples seen", FACE_LABEL)
    plots.bars(folder / "losses_background.png", changes, "change outside the face, 1/255")
    sentences = [
        ("the mask loss changes the background more", mask, ours, BACKGROUND),
        ("the standard loss does too", standard, ours, BACKGROUND),
        ("text is kept at least as well as with the mask loss", ours, mask, ATTRIBUTES),
        ("… as with the standard loss", ours, standard, ATTRIBUTES),
        ("identity at half time is at least the mask loss's", ours_half, mask_half, IDENTITY),
        ("… the standard loss's", ours_half, standard_half, IDENTITY),
        ("identity at the end is at least the mask loss's", ours, mask, IDENTITY),
        ("… the standard loss's", ours, standard, IDENTITY),
    ]
    return {
        "seeds": len(seeds),
        "settings": settings_table(results, "loss", rows),
        "checks": [results.check(*one) for one in sentences],
    }


def references(results: ResultStore, config: ml_collections.ConfigDict, folder: Path) -> Values:
    """2. Several pictures of the person."""
    names = {f"{count}, {pool}": plan.pooled(count, pool) for pool in ("concat", "mean") for count in plan.COUNTS}
    names.pop("1, mean")
    curves = {
        label: [(count, results.figure(plan.pooled(count, pool), IDENTITY)) for count in plan.COUNTS]
        for label, pool in (("concatenated", "concat"), ("averaged", "mean"))
    }
    plots.curves(folder / "references.png", curves, "pictures of the person", FACE_LABEL)
    five, four, averaged = plan.pooled(5, "concat"), plan.pooled(4, "concat"), plan.pooled(4, "mean")
    sentences = [
        ("four pictures give more identity than one", four, plan.DEFAULT, IDENTITY),
        ("five give more than four", five, four, IDENTITY),
        ("four concatenated are at least as good as averaged", four, averaged, IDENTITY),
    ]
    return {
        "settings": settings_table(results, "setting", {"no face": plan.BASE, **names}),
        "checks": [results.check(*one) for one in sentences],
    }


def trade(results: ResultStore, config: ml_collections.ConfigDict, folder: Path) -> Values:
    """3. Guidance and the strength of the face."""
    scales = {f"face scale {scale:g}": plan.swept("face_scale", scale) for scale in plan.FACE_SCALES}
    guidances = {f"guidance {guidance:g}": plan.swept("guidance", guidance) for guidance in plan.GUIDANCES}
    unconds = {f"unconditional: {mode}": plan.swept("uncond", mode) for mode in plan.UNCONDS}
    swept = {**scales, **guidances}
    points = {label: (results.figure(of, ATTRIBUTES), results.figure(of, IDENTITY)) for label, of in swept.items()}
    plots.scatter(folder / "trade.png", points, "attributes shown", FACE_LABEL, connect=[list(scales), list(guidances)])
    strong, weak = scales["face scale 2"], scales["face scale 0.5"]
    high, low = guidances["guidance 6"], guidances["guidance 1"]
    zero_face = (
        "the paper's unconditional half (zero face vector) is at least as good for identity as the release's "
        "(noise for text, no face)"
    )
    sentences = [
        ("a stronger face (2 against 0.5) has more identity", strong, weak, IDENTITY),
        ("… and costs text", weak, strong, ATTRIBUTES),
        ("guidance 6, the paper's, has more identity than none", high, low, IDENTITY),
        ("… and shows more of the prompt", high, low, ATTRIBUTES),
        (zero_face, plan.swept("uncond", "paper"), plan.swept("uncond", "true_uncond"), IDENTITY),
    ]
    return {
        "defaults": plan.DEFAULTS,
        "settings": settings_table(results, "setting", {**swept, **unconds}),
        "checks": [results.check(*one) for one in sentences],
    }


def sites(results: ResultStore, config: ml_collections.ConfigDict, folder: Path) -> Values:
    """4. Where the control acts."""
    last, seed = config.train.measured_at[-1], config.train.seeds[0]
    default, on_input = plan.at(plan.of_loss(plan.LOSSES[0], seed), last), plan.at("control-input", last)
    others = {name: plan.at(plan.of_sites(name), last) for name in list(plan.SITES)[1:]}
    names = {f"default ({', '.join(plan.SITES['default'])})": default, **others}
    names["default, control sees the block's input"] = on_input
    rows, points = [], {}
    for label, name in names.items():
        millions, identity = results.get(name)["parameters"] / 1e6, results.figure(name, IDENTITY)
        per_million = decimal(scaled(identity, 1 / millions))
        rows.append([f"sites: {label}", f"{millions:.2f} M", per_million, *cells(results, name)])
        points[label] = (Figure(millions, millions, millions), identity)
    plots.scatter(folder / "sites.png", points, "trained parameters, millions", FACE_LABEL)
    seen = "seeing the block's output (release) is at least as good as its input (Fig. 1)"
    both, every, inner, outer = (others[name] for name in ("every other", "all", "in only", "out only"))
    sentences = [
        ("every other block is at least as good as all", both, every, IDENTITY),
        ("blocks on both sides are at least as good as in-blocks only", both, inner, IDENTITY),
        ("… as out-blocks only", both, outer, IDENTITY),
        (seen, default, on_input, IDENTITY),
    ]
    titles = [title for title, _ in COLUMNS.values()]
    return {
        "samples": last,
        "settings": table(["", "parameters", "identity a million", *titles], rows),
        "checks": [results.check(*one) for one in sentences],
    }


def efficiency(results: ResultStore, config: ml_collections.ConfigDict, folder: Path) -> Values:
    """5. Few samples, few people."""
    seeds, seen, everybody = config.train.seeds, config.train.measured_at, config.world.identities
    by_samples = {
        f"{samples}": [plan.at(plan.of_loss(plan.LOSSES[0], seed), samples) for seed in seeds] for samples in seen
    }
    by_people = {f"{count}": plan.at(plan.of_people(count), seen[-1]) for count in plan.FEWER_PEOPLE}
    by_people[f"{everybody}"] = by_samples[f"{seen[-1]}"][0]

    def curve(names: Mapping[str, Names]) -> list[tuple[int, Figure]]:
        return [(int(count), results.figure(of, IDENTITY)) for count, of in names.items()]

    plots.curves(folder / "samples_seen.png", {"regularization": curve(by_samples)}, "samples seen", FACE_LABEL)
    plots.curves(folder / "people.png", {"": curve(by_people)}, "people trained on", FACE_LABEL, logx=True)
    first, *_, final = by_samples.values()
    fewest, *_, more, all_people = by_people.values()
    fewest_count, *_, more_count = plan.FEWER_PEOPLE
    sentences = [
        (f"{seen[-1]} samples give more identity than {seen[0]}", final, first, IDENTITY),
        (f"{everybody} people give more than {fewest_count}", all_people, fewest, IDENTITY),
        (f"{more_count} people are at least as good as {everybody}", more, all_people, IDENTITY),
    ]
    return {
        "samples": seen[-1],
        "settings": settings_table(results, "samples seen", by_samples),
        "people": settings_table(results, "setting", {f"{count} people": of for count, of in by_people.items()}),
        "checks": [results.check(*one) for one in sentences],
    }


def baseline(results: ResultStore, config: ml_collections.ConfigDict, folder: Path) -> Values:
    """6. Against DreamBooth (Table 1)"""
    scores = results.get(DREAMBOOTH)
    face, text = "similarity_to_another_picture", "attribute_all"
    rows, points = [], {}
    for key, label in SYSTEMS.items():
        figures = {name: Figure(**figure) for name, figure in scores["systems"][key]["figures"].items()}
        normalised = scores["normalised"].get(key)
        overall = ["–"] * 3
        if normalised:
            overall = [decimal(Figure(**normalised[name]), 2) for name in ("face", "text", "overall")]
        seconds = scores["seconds"].get(key)
        rows.append([label, decimal(figures[face]), percent(figures["nearest_identity"]), percent(figures[text])])
        rows[-1] += [*overall, "–" if seconds is None else f"{seconds:.1f}"]
        points[label] = (figures[text], figures[face])
    plots.scatter(folder / "dreambooth.png", points, "attributes shown", FACE_LABEL)
    sheet = results.find("dreambooth_sheet.png")
    if sheet is not None:
        with atomic_file(folder / sheet.name) as temporary:
            shutil.copyfile(sheet, temporary)
    gaps = {name: Figure(**figure) for name, figure in scores["differences"].items()}
    head = ["", "identity", "nearest", "attributes", "face, norm.", "text, norm.", "overall", "seconds a person"]
    return {
        "cases": scores["cases"],
        "training": scores["training"],
        "settings": table(head, rows),
        "checks": [
            Check.of("FeedFace has more face than DreamBooth", gaps[face]),
            Check.of("DreamBooth follows the text better", scaled(gaps["attributes"], -1)),
            Check.of("FeedFace is better overall", gaps["overall"]),
        ],
    }


def limits(results: ResultStore, config: ml_collections.ConfigDict, folder: Path) -> Values:
    """7. What limits the miniature"""
    found = results.get(LIMITS)
    return {"people": found["cases"]["people"], "settings": markdown(found["rows"]), "checks": []}


SECTIONS = (losses, references, trade, sites, efficiency, baseline, limits)
