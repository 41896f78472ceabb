"""The page: docs/reproduction.md and its figures, written from result files alone."""

import shutil
from pathlib import Path

import ml_collections

from feedface.checkpoints.bundle import read_index
from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.progress import say
from feedface.inference.model_files import model_digest
from research import pages
from research.reproduction import plan
from research.reproduction.claims import DREAMBOOTH, LIMITS, SECTIONS
from research.results import NO, OPEN, YES, ResultStore


def write_page(results: ResultStore, config: ml_collections.ConfigDict, out: Path, notes: list[str]) -> Path:
    """Write `out/reproduction.md` and `out/reproduction/*.png`; returns the page's path.

    results: must hold all of `plan`. A section whose files are missing says so instead of stopping the page.
    notes: paragraphs for the head of the page, such as what a quick run measured itself.
    """
    folder = out / "reproduction"
    folder.mkdir(parents=True, exist_ok=True)
    template = pages.template(Path(__file__).with_name("page.md.jinja"))
    sections, verdicts = [], []
    for section in SECTIONS:
        try:
            values = section(results, config, folder) | {"folder": folder.name}
        except UserError as error:
            sections.append(f"## {section.__doc__.splitlines()[0].rstrip('.')}\n\nNot measured: {error}.")
            say(f"page: {error}")
            continue
        text = pages.render_block(template, section.__name__, values)
        holds = [check.holds for check in values["checks"]]
        if holds:
            title = text.splitlines()[0].removeprefix("## ")
            verdicts.append([title, *(str(holds.count(verdict)) for verdict in (YES, OPEN, NO))])
        sections.append(text)
    models, index = _models(results, config), read_index(config.model)
    values = {
        "config": config,
        "notes": notes,
        "models": models,
        "image_size": index.image_size,
        "today": model_digest(index),
        "cost": results.get("cost") if "cost" in results else None,
        "verdicts": pages.table(["section", "sentences that hold", OPEN, "do not hold"], verdicts),
    }
    page = out / "reproduction.md"
    pages.write_page(page, "\n\n".join([pages.render_block(template, "head", values), *sections]))
    say(f"written to {page}")
    return page


def keep_results(workdir: Path, out: Path) -> None:
    """Copy the result files beside the page, where `--quick` and readers find them."""
    for file in sorted((workdir / "results").glob("*.json")):
        with atomic_file(out / "reproduction" / "results" / file.name) as temporary:
            shutil.copyfile(file, temporary)


def _models(results: ResultStore, config: ml_collections.ConfigDict) -> dict[str, str]:
    """Sections -> digests of the weights behind them, "not measured" where there is none."""
    found = {}
    for numbers, measured in (("2 and 3", plan.committed()), ("1, 4 and 5", plan.trained(config))):
        digests = {results.get(one.name)["model"] for one in measured if one.name in results}
        found[numbers] = ", ".join(sorted(digests))
    for number, name in (("6", DREAMBOOTH), ("7", LIMITS)):
        found[number] = results.get(name)["model"]["digest"] if name in results else ""
    return {numbers: digests or "not measured" for numbers, digests in found.items()}
