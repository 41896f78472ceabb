"""Tables and curves, from result files alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from feedface.common.errors import UserError
from feedface.common.json_files import load_json
from feedface.evaluation.metrics import Figure
from research import plots
from research.benchmarks.quality.settings import ABOUT, FEW_STEP, RELEASE, Setting, parse
from research.pages import decimal, percent, table, template, write_page
from research.results import ATTRIBUTES, ResultStore

IDENTITY = "other"
JUDGED = {"nearest": "nearest", IDENTITY: "identity", ATTRIBUTES: "attributes"}
DEFAULT_SOLVER = "dpmsolver++:uniform"
# Headings of the table, and their labels in the legend where they are one curve.
THE_RELEASE, PRESETS, SOLVERS, TOGETHER, FEW, NUMBERS = (
    "the release's way", "presets", "solvers", "savings together", "few steps", "arithmetic",
)  # fmt: skip
SAVINGS = {"guidance": "guidance in an interval", "face": "face in an interval", "reuse": "blocks reused"}
GROUPS = (THE_RELEASE, PRESETS, SOLVERS, *SAVINGS.values(), TOGETHER, FEW, NUMBERS)
CURVES = {PRESETS: "presets", TOGETHER: "together", FEW: FEW_STEP}
HEAD = ["", "evaluations, conditional + unconditional", "of the face", "blocks", "cost", "nearest", "identity",
        "difference", "attributes", "difference, points", "distance, latents", "distance, pixels",
        "within the release's"]  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One result. `name`: of its file; `cost`: see `Artist.cost`."""

    name: str
    setting: Setting
    cost: dict

    @property
    def savings(self) -> list[str]:
        said = self.setting.said
        return [saving for saving in SAVINGS if said[saving] and not said["preset"]]

    @property
    def group(self) -> str:
        """Its heading in the table."""
        said, savings = self.setting.said, self.savings
        special = {
            THE_RELEASE: self.setting.name == RELEASE,
            PRESETS: said["preset"],
            FEW: said["few_step"],
            NUMBERS: said["numbers"],
            TOGETHER: len(savings) > 1,
        }
        own = SAVINGS[savings[0]] if savings else SOLVERS
        return next((group for group, holds in special.items() if holds), own)

    @property
    def place(self) -> tuple:
        """Of its row in the table."""
        said = self.setting.said
        intervals = [tuple(map(int, said[what].split("-"))) if said[what] else () for what in ("guidance", "face")]
        return GROUPS.index(self.group), said["scheduler"] or "", int(said["steps"] or 0), *intervals, self.setting.name

    @property
    def curve(self) -> str | None:
        """The saving whose curve it belongs to, with the evaluations of the setting without it."""
        said, group = self.setting.said, self.group
        if group == SOLVERS and said["scheduler"] == DEFAULT_SOLVER:
            return DEFAULT_SOLVER
        if group not in SAVINGS.values():
            return CURVES.get(group)
        [saving] = self.savings
        if saving != "reuse":
            low, high = said[saving].split("-")
            saving = f"{saving} {'late' if low == '0' else 'early' if high == '1000' else 'between'}"
        return f"{saving} ({said['steps']})"


class Study:
    """All results of a folder, in the order of the table, beside the release's way; `UserError` without that."""

    def __init__(self, workdir: Path):
        self.results = ResultStore([workdir])
        names = [file.stem for file in sorted(workdir.glob("*.json")) if file.name != ABOUT]
        found = {name: self.results.get(name) for name in names}
        points = [Point(name, parse(one["setting"]), one["cost"]) for name, one in found.items()]
        self.points = sorted(points, key=lambda point: point.place)
        self.release = next((point for point in self.points if point.setting.name == RELEASE), None)
        if self.release is None:
            raise UserError(
                f"{workdir}: {RELEASE} is not measured yet; run python -m research.benchmarks.quality first"
            )

    def cost(self, point: Point) -> float:
        """Arithmetic in % of the release's."""
        return 100 * point.cost["gflop"] / self.release.cost["gflop"]

    def figure(self, point: Point, key: str) -> Figure:
        return self.results.figure(point.name, key)

    def difference(self, point: Point, key: str) -> Figure:
        """To the release's way, in pairs."""
        return self.results.difference(point.name, self.release.name, key)

    def losses(self, point: Point) -> list[str]:
        """Figures whose value is below the release's interval. (Above it is no loss.)"""
        return [
            title for key, title in JUDGED.items()
            if self.figure(point, key).value < self.figure(self.release, key).low
        ]  # fmt: skip

    def table(self) -> str:
        """A row a setting."""
        rows, group = [], None
        for point in self.points:
            if point.group != group:
                group = point.group
                rows.append([f"**{group}**", *[""] * (len(HEAD) - 1)])
            cost = point.cost
            cells = [point.setting.name, f"{cost['conditional']} + {cost['unconditional']}", f"{cost['control']:.3g}"]
            cells += [f"{cost['blocks']:.0%}", f"{self.cost(point):.1f} %", percent(self.figure(point, "nearest"))]
            for key, write in ((IDENTITY, decimal), (ATTRIBUTES, percent)):
                cells += [write(self.figure(point, key)), self._difference(point, key, write)]
            cells += [decimal(self.figure(point, "distance_latent")), decimal(self.figure(point, "distance_pixel"), 1)]
            rows.append([*cells, ", ".join(f"not {title}" for title in self.losses(point)) or "all"])
        return table(HEAD, rows)

    def _difference(self, point: Point, key: str, write: Callable[[Figure], str]) -> str:
        if point is self.release:
            return "–"
        figure = self.difference(point, key)
        return f"**{write(figure)}**" if figure.low > 0 or figure.high < 0 else write(figure)

    def cheapest(self) -> str:
        """The cheapest settings that lose nothing, by two rules."""
        rules = {
            "no figure below the release's interval": lambda point: not self.losses(point),
            "no paired difference's interval wholly below 0": lambda point: (
                not any(self.difference(point, key).high < 0 for key in JUDGED)
            ),
        }
        rows = []
        for rule, holds in rules.items():
            kept = sorted((self.cost(point), point.setting.name) for point in self.points if holds(point))
            rows.append([rule, "; ".join(f"{name} ({cost:.1f} %)" for cost, name in kept[:5])])
        return table(["rule", "cheapest settings that keep it (cost)"], rows)

    def solver_curves(self) -> dict[str, list[Point]]:
        """Solvers without savings of which there are two points, and the adapter."""
        series: dict[str, list[Point]] = {}
        for point in self.points:
            if point.group in (THE_RELEASE, SOLVERS):
                series.setdefault(point.setting.said["scheduler"], []).append(point)
            elif point.setting.name == FEW_STEP:
                series.setdefault(FEW_STEP, []).append(point)
        return {label: points for label, points in series.items() if len(points) > 1 or label == FEW_STEP}

    def saving_curves(self) -> dict[str, list[Point]]:
        """What each saving brings, from the setting without it on."""
        plain = {point.setting.name: point for point in self.points}
        series: dict[str, list[Point]] = {}
        for point in self.points:
            start = plain.get(point.setting.said["first"]) if len(point.savings) == 1 else None
            if point.curve is not None:
                series.setdefault(point.curve, [start] * (start is not None)).append(point)
        return series

    def curves(self, out: Path) -> list[tuple[str, str]]:
        """Write the pictures; returns their files and titles."""
        measured = {
            "identity": (lambda point: self.difference(point, IDENTITY), "identity, minus the release's"),
            "attributes": (lambda point: self.difference(point, ATTRIBUTES), "attributes, minus the release's"),
            "distance": (lambda point: self.figure(point, "distance_latent"), "distance in latents"),
        }
        sweeps = {
            "evaluations": ("evaluations a picture", self.solver_curves(), lambda point: point.cost["conditional"]),
            "cost": ("arithmetic in % of the release's way", self.saving_curves(), self.cost),
        }
        files = []
        for sweep, (xlabel, series, x) in sweeps.items():
            for title, (y, ylabel) in measured.items():
                lines = {
                    label: [(x(point), y(point)) for point in sorted(points, key=x)] for label, points in series.items()
                }
                file = f"sampling_{title}_{sweep}.png"
                plots.curves(out / file, lines, xlabel, ylabel, logx=True)
                files.append((file, f"{title} against {sweep}"))
        return files


def write_study(workdir: Path, out: Path) -> Path:
    """Write `out/sampling_quality.md` and its curves from what `workdir` holds; returns the page's path."""
    study = Study(workdir)
    page = out / "sampling_quality.md"
    text = template(Path(__file__).with_name("page.md.jinja")).render(
        **load_json(workdir / ABOUT),
        gflop=study.release.cost["gflop"],
        settings=study.table(),
        cheapest=study.cheapest(),
        curves=study.curves(out),
    )
    write_page(page, text)
    return page
