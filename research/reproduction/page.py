"""The page: docs/reproduction.md and its figures, written from result files alone."""

import shutil
from pathlib import Path

import ml_collections

from feedface.checkpoints.bundle import read_index
from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.inference.model_files import model_digest
from feedface.synthetic.train.common import say
from research.reproduction import claims, plan, sections
from research.reproduction.results import NO, OPEN, YES, Results, table

SECTIONS = (claims.losses, claims.references, claims.trade, claims.sites, claims.efficiency)


def write_page(results: Results, config: ml_collections.ConfigDict, out: Path, notes: list[str]) -> Path:
    """Write `out/reproduction.md` and `out/reproduction/*.png`; returns the page's path.

    results: must hold all of `plan`. A section whose files are missing says so instead of stopping the page.
    notes: paragraphs for the head of the page, such as what a quick run measured itself.
    """
    folder = out / "reproduction"
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for section in (*SECTIONS, sections.baseline, sections.limits):
        try:
            parts.append(section(results, config, folder))
        except UserError as error:
            parts.append(f"## {section.__doc__.splitlines()[0].rstrip('.')}\n\nNot measured: {error}.")
            say(f"page: {error}")
    parts.insert(0, _head(results, config, notes) + "\n\n" + _verdicts(parts))
    page = out / "reproduction.md"
    with atomic_file(page) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    say(f"written to {page}")
    return page


def keep_results(workdir: Path, out: Path) -> None:
    """Copy the result files beside the page, where `--quick` and readers find them."""
    folder = out / "reproduction" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted((workdir / "results").glob("*.json")):
        with atomic_file(folder / file.name) as temporary:
            shutil.copyfile(file, temporary)


def _verdicts(parts: list[str]) -> str:
    """How many sentences of each section hold."""
    rows = []
    for part in parts:
        counts = [part.count(f"| **{verdict}** |") for verdict in (YES, OPEN, NO)]
        if any(counts):
            rows.append([part.splitlines()[0].removeprefix("## "), *map(str, counts)])
    return table(["section", "sentences that hold", OPEN, "do not hold"], rows)


def _head(results: Results, config: ml_collections.ConfigDict, notes: list[str]) -> str:
    measure, train, world = config.measure, config.train, config.world
    lines = [
        "# The paper's claims, made again in the miniature",
        "",
        "`make reproduce` writes this page from nothing but this repository (hours on two CPU cores, resumable); "
        "`make reproduce QUICK=1` measures what needs no training anew, with fewer people, in minutes.",
        "",
        f"The model is `{config.model}`: 64 px portraits of a procedural world, a 6 M U-ViT trained on it, and face-"
        f"controlnets of 2 M. Trainings of claims 1, 4 and 5 start from nothing, on {world.identities} people x "
        f"{world.per_identity} pictures, {train.samples} samples in batches of {train.batch_size}, lr "
        f"{train.lr:g}: far "
        "fewer than the committed model's 236 800, so their figures are lower; they are for comparing with each other. "
        f"Measured on {measure.people} people nobody was trained on, {measure.samples_per_person} prompts each, "
        f"{measure.steps} evaluations a picture, one reference unless said, the same prompts and noise everywhere. The "
        "judge is `models/mini/inspector`, trained apart on other people.",
        "",
        "**identity**: cosine of the judge's embeddings with *other* pictures of the person (real pictures of one "
        f"person: 0.50). **nearest**: share of pictures nearest to that person among {measure.people} (chance "
        f"{1 / measure.people:.0%}). **attributes**: share of what the prompts name that is shown. "
        "**background**: mean "
        "absolute difference outside face and hair to the picture of the same seed without a face, in 1/255. Brackets: "
        "95 % bootstrap intervals over people (and seeds). A sentence *holds* where the interval of the paired "
        "difference excludes 0; *not told apart* says that it does not.",
    ]
    for note in notes:
        lines += ["", note]
    models = {}
    for numbers, measured in (("2 and 3", plan.committed()), ("1, 4 and 5", plan.trained(config))):
        found = {results.get(one.name)["model"] for one in measured if one.name in results}
        models[numbers] = ", ".join(sorted(found)) or "not measured"
    for number, name in (("6", sections.DREAMBOOTH), ("7", sections.LIMITS)):
        models[number] = results.get(name)["model"]["digest"] if name in results else "not measured"
    lines += ["", f"Weights behind sections {'; '.join(f'{name}: {which}' for name, which in models.items())}."]
    now = model_digest(read_index(config.model))
    if set(models.values()) - {now, "not measured"}:
        lines[-1] += (
            f" `{config.model}` is {now} today: it was trained on since, and what it reaches stands in "
            "[results.md](results.md)."
        )
    if "cost" in results:
        cost = results.get("cost")
        lines += [
            "",
            f"Cost: {cost['trainings']} trainings, {cost['training_hours']:.1f} h, and "
            f"{cost['measuring_hours']:.1f} h of "
            "drawing and judging (sections 6 and 7 apart), by the clock, one thread each.",
        ]
    return "\n".join(lines)
