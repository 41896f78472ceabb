"""The page's sections that other programs measure: the per-person baseline and what limits the miniature."""

import shutil
from pathlib import Path

import ml_collections

from feedface.common.files import atomic_file
from feedface.evaluation import plots
from feedface.evaluation.metrics import Figure
from research.reproduction.limits import markdown
from research.reproduction.results import Check, Results, checks_table, number, share, table

DREAMBOOTH, LIMITS = "dreambooth", "limits"
SYSTEMS = {
    "no face": "no face",
    "dreambooth": "DreamBooth, LoRA",
    "face-controlnet": "FeedFace",
    "references": "the references themselves",
}


def baseline(results: Results, config: ml_collections.ConfigDict, folder: Path) -> str:
    """6. Against DreamBooth (Table 1)"""
    scores = results.get(DREAMBOOTH)
    systems, cases = scores["systems"], scores["cases"]
    rows, points = [], {}
    for key, label in SYSTEMS.items():
        figures = {name: Figure(**figure) for name, figure in systems[key]["figures"].items()}
        normalised = scores["normalised"].get(key)
        cells = [number(3)(figures["similarity_to_another_picture"]), share(figures["nearest_identity"])]
        cells += [share(figures["attribute_all"])]
        cells += (
            [number(2)(Figure(**normalised[name])) for name in ("face", "text", "overall")] if normalised else ["–"] * 3
        )
        cells.append(_time(scores, key))
        rows.append([label, *cells])
        points[label] = (figures["attribute_all"], figures["similarity_to_another_picture"])
    plots.scatter(folder / "dreambooth.png", points, "attributes shown", "identity: similarity to another picture")
    gaps = {name: Figure(**figure) for name, figure in scores["differences"].items()}
    checks = [
        Check.of("FeedFace has more face than DreamBooth", gaps["similarity_to_another_picture"]),
        Check.of("DreamBooth follows the text better", _negative(gaps["attributes"])),
        Check.of("FeedFace is better overall", gaps["overall"]),
    ]
    training, sheet = scores["training"], results.find("dreambooth_sheet.png")
    if sheet is not None:
        with atomic_file(folder / sheet.name) as temporary:
            shutil.copyfile(sheet, temporary)
    return "\n".join(
        [
            "## 6. Against DreamBooth, trained anew for each person (Table 1)",
            "",
            "The paper: DreamBooth 0.176 face, 0.878 text, overall 2.09, 72 min for 36 people; FeedFace 0.293, 0.760, "
            "2.17, 22 min.",
            "",
            f"{len(cases['people'])} people, {cases['references']} pictures each, for both; "
            f"{cases['samples_per_identity']} prompts a person. DreamBooth: LoRA of rank {training['rank']} on "
            "all linear "
            f"layers of the U-ViT, {training['train_steps']} steps at {training['lr']:g}, prior of weight "
            f"{training['prior_weight']:g}; chosen on three other people (of two rates, three weights, 40 to 240 "
            "steps). "
            "Normalised as in App. C, but over all people together, with the judge's identity for the face and its "
            "attributes for the text: face 0 is the model without a face, 1 the references among each other; text 1 is "
            "the model without a face, 0 the references themselves. Overall is their sum; the paper's adds two CLIP "
            "columns.",
            "",
            table(
                ["", "identity", "nearest", "attributes", "face, norm.", "text, norm.", "overall", "seconds a person"],
                rows,
            ),
            "",
            checks_table(checks),
            "",
            f"![face against text]({folder.name}/dreambooth.png)",
            f"![pictures]({folder.name}/dreambooth_sheet.png)",
            "",
            "Command: `python -m research.reproduction --stage dreambooth`",
        ]
    )


def limits(results: Results, config: ml_collections.ConfigDict, folder: Path) -> str:
    """7. What limits the miniature"""
    found = results.get(LIMITS)
    return "\n".join(
        [
            "## 7. What limits the miniature",
            "",
            f"Each part by itself, {found['cases']['people']} people, judged by the inspector (nearest identity of "
            f"{found['cases']['people']}). Noised and denoised: a real picture is noised to level t (of 1000) and "
            "denoised "
            "by the base with its caption, so at 1000 nothing of the person is left but what the caption says. "
            "The linear "
            "probe predicts the judge's embedding from the face encoder's states.",
            "",
            markdown(found["rows"]),
            "",
            "Command: `python -m research.reproduction --stage limits`",
        ]
    )


def _time(scores: dict, system: str) -> str:
    seconds = scores["seconds"].get(system)
    return "–" if seconds is None else f"{seconds:.1f}"


def _negative(figure: Figure) -> Figure:
    return Figure(-figure.value, -figure.high, -figure.low)
