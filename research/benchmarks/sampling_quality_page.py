"""Tables and curves of `sampling_quality.py`, from result files alone."""

import json
from dataclasses import replace
from pathlib import Path

from research import plots
from research.reproduction.results import Results, number, share, table
from sampling_quality_settings import FEW_STEP, RELEASE, Setting, parse

from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.evaluation.metrics import Figure

IDENTITY, ATTRIBUTES = "other", "attributes"  # keys of a result's "people", or of `Results`
JUDGED = {"nearest": "nearest", IDENTITY: "identity", ATTRIBUTES: "attributes"}
RELEASE_GROUP = "the release's way"
DEFAULT_SOLVER = "dpmsolver++:uniform"
GROUPS = (RELEASE_GROUP, "presets", "solvers", "guidance in an interval", "face in an interval", "blocks reused",
          "savings together", "few steps", "arithmetic")  # fmt: skip
SHORT = {"presets": "presets", "savings together": "together", "few steps": FEW_STEP}  # in a legend
Named = list[tuple[str, Setting, dict]]  # (a result file's name, its setting, its content)


def write_page(workdir: Path, out: Path) -> Path:
    """Write `out/sampling_quality.md` and its curves from what `workdir` holds; returns the page's path.

    `UserError` while the release's way, to which all is compared, is not measured.
    """
    results = Results([workdir])
    found = _read(workdir, results)
    release = Path(parse(RELEASE).file_name).stem
    if release not in {name for name, _, _ in found}:
        raise UserError(f"{workdir}: {RELEASE} is not measured yet; run research/benchmarks/sampling_quality.py first")
    out.mkdir(parents=True, exist_ok=True)
    about = json.loads((workdir / "about.json").read_text(encoding="utf-8"))
    parts = [_head(about, results, release)]
    parts += [_table(found, results, release), _cheapest(found, results, release)]
    parts += [f"![{title}]({file})" for file, title in _curves(found, results, release, out)]
    page = out / "sampling_quality.md"
    with atomic_file(page) as temporary:
        temporary.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return page


def within(figure: Figure, of: Figure) -> bool:
    """Whether a figure's value is not below another's interval. (Above it is no loss.)"""
    return figure.value >= of.low


def _read(workdir: Path, results: Results) -> Named:
    """All results in the order of the table."""
    names = [file.stem for file in sorted(workdir.glob("*.json")) if file.name != "about.json"]
    found = [(name, parse(results.get(name)["setting"]), results.get(name)) for name in names]
    return sorted(found, key=lambda one: _place(one[1]))


def _group(setting: Setting) -> str:
    savings = [bool(knob) for knob in (setting.guidance_interval, setting.face_interval, setting.reuse)]
    if setting.name == RELEASE:
        return GROUPS[0]
    if setting.preset:
        return GROUPS[1]
    if setting.few_step or setting.numbers:
        return GROUPS[7 if setting.few_step else 8]
    if sum(savings) > 1:
        return GROUPS[6]
    return GROUPS[3 + savings.index(True)] if any(savings) else GROUPS[2]


def _place(setting: Setting) -> tuple:
    intervals = [interval or () for interval in (setting.guidance_interval, setting.face_interval)]
    return GROUPS.index(_group(setting)), setting.scheduler or "", setting.steps or 0, *intervals, setting.name


# ------------------------------------------------------------------------------------------------------------- tables


def _head(about: dict, results: Results, release: str) -> str:
    cases, fine = about["cases"], about["fine"]
    pictures = cases["people"] * cases["samples_per_person"]
    return (
        f"{cases['people']} people nobody was trained on, {cases['samples_per_person']} prompts each ({pictures} "
        f"pictures a setting), {cases['references']} reference(s), the same prompts and noise everywhere; weights "
        f"{about['model']}. **nearest**: share of pictures nearest to that person among {cases['people']}. "
        "**identity**: cosine of the judge's embeddings with other pictures of the person. **attributes**: share of "
        "what the prompts name that is shown. **cost**: arithmetic of the passes, in % of the release's way "
        f"({results.get(release)['cost']['gflop']:.1f} GFLOP a picture). **distance**: root mean square difference "
        f"to {fine['setting']} evaluations with the same noise ({fine['people']} pictures), in latents and in pixels "
        "of 255; a setting that guides or shows the face at some times only solves another equation. Brackets: 95 % "
        "bootstrap intervals over people; differences to the release's way are paired, and **bold** where their "
        "interval excludes 0; the last column says whether nearest, identity and attributes themselves are above the "
        "lower ends of the release's intervals. **blocks**: share of the U-ViT's blocks evaluated in these "
        "passes. In the curves an early interval is one from some t to 1000, a late one begins at 0."
    )


def _table(found: Named, results: Results, release: str) -> str:
    """A row a setting."""
    head = ["", "evaluations, conditional + unconditional", "of the face", "blocks", "cost", "nearest", "identity",
            "difference", "attributes", "difference, points", "distance, latents", "distance, pixels",
            "within the release's"]  # fmt: skip
    rows, group = [], None
    for name, setting, result in found:
        if _group(setting) != group:
            group = _group(setting)
            rows.append([f"**{group}**", *[""] * (len(head) - 1)])
        cost = result["cost"]
        rows.append(
            [
                setting.name,
                f"{cost['conditional']} + {cost['unconditional']}",
                f"{cost['control']:.3g}",
                f"{cost['blocks']:.0%}",
                f"{relative_cost(result, results.get(release)):.1f} %",
                share(results.figure(name, "nearest")),
                number(3)(results.figure(name, IDENTITY)),
                _difference(results, name, release, IDENTITY, number(3)),
                share(results.figure(name, ATTRIBUTES)),
                _difference(results, name, release, ATTRIBUTES, share),
                number(3)(results.figure(name, "distance_latent")),
                number(1)(results.figure(name, "distance_pixel")),
                _losses(results, name, release) or "all",
            ]
        )
    return table(head, rows)


def relative_cost(result: dict, release: dict) -> float:
    """Arithmetic in % of the release's."""
    return 100 * result["cost"]["gflop"] / release["cost"]["gflop"]


def _difference(results: Results, name: str, release: str, key: str, write) -> str:
    if name == release:
        return "–"
    figure = results.difference(name, release, key)
    return f"**{write(figure)}**" if figure.low > 0 or figure.high < 0 else write(figure)


def _losses(results: Results, name: str, release: str) -> str:
    """The figures that are below the release's interval."""
    below = [
        f"not {title}"
        for key, title in JUDGED.items()
        if not within(results.figure(name, key), results.figure(release, key))
    ]
    return ", ".join(below)


def _cheapest(found: Named, results: Results, release: str) -> str:
    """The cheapest settings that lose nothing, by two rules."""
    rows = []
    rules = {
        "no figure below the release's interval": lambda name: not _losses(results, name, release),
        "no paired difference's interval wholly below 0": lambda name: (
            not any(results.difference(name, release, key).high < 0 for key in JUDGED)
        ),
    }
    for rule, holds in rules.items():
        kept = sorted((relative_cost(result, results.get(release)), setting.name) for name, setting, result in found
                      if holds(name))  # fmt: skip
        cheapest = "; ".join(f"{name} ({cost:.1f} %)" for cost, name in kept[:5])
        rows.append([rule, cheapest])
    return table(["rule", "cheapest settings that keep it (cost)"], rows)


# ------------------------------------------------------------------------------------------------------------- curves


def _curves(found: Named, results: Results, release: str, out: Path) -> list[tuple[str, str]]:
    """Write the pictures; returns their files and titles."""
    evaluations = {name: result["cost"]["conditional"] for name, _, result in found}
    costs = {name: relative_cost(result, results.get(release)) for name, _, result in found}
    measured = {
        "identity": (IDENTITY, "identity, minus the release's"),
        "attributes": (ATTRIBUTES, "attributes, minus the release's"),
        "distance": ("distance_latent", "distance in latents"),
    }
    sweeps = (
        ("evaluations", "evaluations a picture", _solver_curves(found), evaluations),
        ("cost", "arithmetic in % of the release's way", _saving_curves(found), costs),
    )
    files = []
    for sweep, xlabel, series, x in sweeps:
        for title, (key, ylabel) in measured.items():
            lines = {
                label: [(x[name], _point(results, name, release, key)) for name in sorted(names, key=x.get)]
                for label, names in series.items()
            }
            file = f"sampling_{title}_{sweep}.png"
            plots.curves(out / file, lines, xlabel, ylabel, logx=True)
            files.append((file, f"{title} against {sweep}"))
    return files


def _point(results: Results, name: str, release: str, key: str) -> Figure:
    return results.figure(name, key) if key == "distance_latent" else results.difference(name, release, key)


def _solver_curves(found: Named) -> dict[str, list[str]]:
    """Solvers without savings of which there are two points, and the adapter: label -> names."""
    series: dict[str, list[str]] = {}
    for name, setting, _ in found:
        if _group(setting) in (RELEASE_GROUP, "solvers"):
            series.setdefault(setting.scheduler, []).append(name)
        elif setting == Setting(few_step=True):
            series.setdefault(FEW_STEP, []).append(name)
    return {label: names for label, names in series.items() if len(names) > 1 or label == FEW_STEP}


def _saving_curves(found: Named) -> dict[str, list[str]]:
    """What each saving brings, from the setting without it on: label (with its evaluations) -> names."""
    names = {setting: name for name, setting, _ in found}
    series: dict[str, list[str]] = {}
    for name, setting, _ in found:
        group = _group(setting)
        plain = replace(setting, guidance_interval=None, face_interval=None, reuse=None)
        if group == "solvers" and setting.scheduler == DEFAULT_SOLVER:
            series.setdefault(DEFAULT_SOLVER, []).append(name)
        elif group in SHORT:
            series.setdefault(SHORT[group], []).append(name)
        elif group not in (RELEASE_GROUP, "solvers", "arithmetic"):
            start = [names[plain]] if plain in names else []
            series.setdefault(f"{_saving(setting)} ({plain.steps})", start).append(name)
    return series


def _saving(setting: Setting) -> str:
    """The one saving of a setting in words."""
    if setting.reuse:
        return "reuse"
    what, (low, high) = next(
        (what, interval)
        for what, interval in (("guidance", setting.guidance_interval), ("face", setting.face_interval))
        if interval is not None
    )
    return f"{what} {'late' if low == 0 else 'early' if high == 1000 else 'between'}"
