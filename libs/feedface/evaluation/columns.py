"""Every figure of an evaluation, in one table: what it is in words, how it is measured, compared and written."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from feedface.evaluation.metrics import Figure

HIGHER, LOWER, ZERO, NEITHER = "higher", "lower", "zero", ""
BETTER, WORSE, UNDECIDED = "better", "worse", "no difference shown"
ARROWS = {HIGHER: "↑", LOWER: "↓", ZERO: "→ 0", NEITHER: ""}
FACE, TEXT, REST, COST = "Is it the person?", "Is it what the prompt says?", "What else does the face change?", "Cost"
NO_OTHERS, ONE_PERSON = "no case has pictures that are no references", "needs at least two people"
NO_PAIR = "no pair of pictures has a face in both and something beside the faces"
NORMALISED = "normalised."  # stands before the key of a column of Table 1


@dataclass(frozen=True)
class Column:
    """A figure.

    Attributes:
        key: its name in scores.json, and in a row of scores.jsonl.
        better: HIGHER, LOWER, ZERO (nearer 0) or NEITHER.
        form: "score", "sum" (of scores), "share" (of 1, shown in percent), "seconds", "time" (seconds of a whole run)
            or "mib".
        absent: why there is no such figure, where no judge is missing.
        averaged: it is the mean over people of the rows' values; the others are made in ways of their own.
        compared: systems are compared by it.
    """

    key: str
    name: str
    better: str
    about: str
    form: str = "score"
    group: str = ""
    absent: str = "no picture has it"
    averaged: bool = True
    compared: bool = True

    @property
    def title(self) -> str:
        return f"{self.name} {ARROWS[self.better]}".rstrip()

    def number(self, value: float) -> str:
        if self.form == "share":
            return f"{100 * value:.1f} %"
        one, digits, unit = _unit(value, self.form)
        return f"{value / one:.{digits}f}{unit}"

    def interval(self, figure: Figure) -> str:
        """[low, high] in the unit of the value, without it; "" where it is not known."""
        ends = (figure.low, figure.high)
        if not all(math.isfinite(end) for end in ends) or self.form == "mib":
            return ""
        one, digits, _ = _unit(figure.value, self.form)
        return f"[{', '.join(f'{end / one:.{digits}f}' for end in ends)}]"

    def difference(self, value: float) -> str:
        """With its sign; shares in points."""
        if self.form == "share":
            return f"{100 * value:+.1f} points"
        return f"{value:+.3f}" if self.form == "score" else ("+" if value > 0 else "") + self.number(value)

    def verdict(self, difference: Figure) -> str:
        """BETTER, WORSE or UNDECIDED: whether, and on which side, the interval of a difference A - B leaves 0 out.

        "" where the interval is not known or a difference says nothing: no direction, or best at 0.
        """
        if self.better not in (HIGHER, LOWER) or not math.isfinite(difference.low + difference.high):
            return ""
        if difference.low <= 0 <= difference.high:
            return UNDECIDED
        return BETTER if (difference.low > 0) == (self.better == HIGHER) else WORSE

    def best(self, figures: Mapping[str, Figure | None], among: Collection[str]) -> set[str]:
        """Of the systems `among`, those with the best value as it is written; none where fewer than two were measured
        or all are equal.

        A background that never differs is that of the base model itself: nobody's merit.
        """
        measured = {name: figure for name, figure in figures.items() if figure is not None and name in among}
        if self.key.startswith("background_"):
            measured = {name: figure for name, figure in measured.items() if figure.high > 0}
        if len(measured) < 2 or self.better == NEITHER:
            return set()
        demerit = {HIGHER: lambda value: -value, LOWER: lambda value: value, ZERO: abs}[self.better]
        top = self.number(min((figure.value for figure in measured.values()), key=demerit))
        first = {name for name, figure in measured.items() if self.number(figure.value) == top}
        return first if len(first) < len(measured) else set()


def _unit(value: float, form: str) -> tuple[float, int, str]:
    """(how much one is, digits after the point, unit) that a value of that size is written in."""
    if form == "time":
        return (1, 0, " s") if value < 120 else (60, 0, " min") if value < 7200 else (3600, 1, " h")
    if form == "mib":
        return (1, 0, " MiB") if value < 10_240 else (1024, 1, " GiB")
    if form == "seconds":
        return (1, 2 if value < 100 else 0, " s")
    return {"share": (0.01, 1, " %"), "sum": (1, 2, "")}.get(form, (1, 3, ""))


FIGURES = (
    Column("detection_rate", "face found", HIGHER,
           "Pictures in which the judge finds a face. One without a face is not left out: it counts as similarity 0 "
           "in the rows below.", "share", FACE, averaged=False, compared=False),
    Column("face_other", "face, another picture", HIGHER,
           "Likeness of the drawn face to photos of the person that the system was never shown: the main figure for "
           "identity, which a mere copy of the reference does not raise. Cosine of a face recogniser's embeddings: "
           "1 the same picture, about 0 strangers.", group=FACE, absent=NO_OTHERS),
    Column("face_reference", "face, the reference", HIGHER,
           "The same to the photos that were shown. Higher than the row above by much: copied rather than understood.",
           group=FACE),
    Column("face_strangers", "face, other people", LOWER,
           "The same to photos of all other people: how alike just any two faces are, the zero line of the two above.",
           group=FACE, absent=ONE_PERSON, compared=False),
    Column("nearest", "nearest identity", HIGHER,
           "Pictures whose face is nearer to its own person than to anyone else in the test; by chance one "
           "in as many as there are people.", "share", FACE, absent=ONE_PERSON),
    Column("clip_face", "face, CLIP", HIGHER,
           "Cosine of CLIP image embeddings of the square face crops of reference and picture; sees hair, pose and "
           "light too. Any two faces score high, so differences are small.", group=FACE),
    Column("copy_paste", "copy-paste", ZERO,
           "Which photo the face is nearer to: 1 is a copy of the one shown, 0 as near to an unseen one of the "
           "same person, negative nearer to the unseen one.", group=FACE, absent=f"{NO_OTHERS}, or no face was found"),
    Column("diversity", "diversity", HIGHER,
           "How different the faces of one person and prompt are: 1 - mean cosine of their embeddings; 0 is the same "
           "face again and again.", group=FACE, averaged=False, compared=False,
           absent="needs at least two pictures a prompt that show a face (--samples 2)"),
    Column("image_reward", "ImageReward", HIGHER,
           "A model of which of two pictures for a prompt people prefer; about -2 to 2, 0 is its average picture.",
           group=TEXT),
    Column("clip_text", "text, CLIP", HIGHER,
           "Cosine of CLIP's text embedding of the prompt and its image embedding of the picture; 0.3 is usual for a "
           "picture that fits.", group=TEXT),
    Column("attributes", "attributes shown", HIGHER,
           "Of all that the prompts name (clothes, hat, glasses, background, …), the share the judge sees in the "
           "picture; below it one kind at a time.", "share", TEXT, averaged=False),
    Column("background_pixels", "background, pixels", LOWER,
           "Change outside face and hair against the picture of the same seed drawn without the face: mean absolute "
           "difference, 0 none, 1 from black to white.", group=REST, absent=NO_PAIR),
    Column("background_clip", "background, CLIP", LOWER,
           "The same as 1 - cosine of CLIP image embeddings, with both faces painted grey.", group=REST,
           absent=NO_PAIR),
    Column("seconds", "seconds a picture", LOWER, "Time to draw one picture, as the pictures were drawn.", "seconds",
           COST, absent="no model drew these pictures"),
    Column("peak_memory_mib", "peak memory", LOWER, "The most memory that was in use.", "mib", COST, averaged=False,
           compared=False),
)  # fmt: skip

TABLE_1 = (
    Column("face", "face (recogniser)", HIGHER,
           "Cosine of a face recogniser's embeddings of references and picture, per person scaled so that 0 is a "
           "picture without the person (the base model alone) and 1 is how alike the references are."),
    Column("clip_face", "face (CLIP)", HIGHER, "Cosine of CLIP image embeddings of the square face crops, as it is."),
    Column("text", "text (ImageReward)", HIGHER,
           "ImageReward, per person scaled so that 0 is the references themselves, which know nothing of the prompt, "
           "and 1 is the base model without a face."),
    Column("clip_text", "text (CLIP)", HIGHER, "Cosine of CLIP embeddings of prompt and picture, as it is."),
    Column("overall", "overall", HIGHER, "The sum of the four, where all four were measured.", "sum"),
    Column("seconds", "time", LOWER, "For all people of the test together.", "time"),
)  # fmt: skip

# Table 1 of the paper: 36 people of PPR10K, 5 to 8 prompts each; the hardware of its times is not told.
PAPER = {
    "DreamBooth": (0.176, 0.718, 0.878, 0.316, 2.09, 72 * 60),
    "FeedFace": (0.293, 0.818, 0.760, 0.298, 2.17, 22 * 60),
}
OF_ATTRIBUTES = (
    "Share of what the prompt names that the judge sees, per person scaled so that 0 is the references themselves, "
    "which know nothing of the prompt, and 1 is the base model without a face."
)


def column_of(key: str) -> Column:
    """The column of a key of a figure; one that is not known here is shown by its key."""
    if key.startswith(NORMALISED):
        known = {NORMALISED + column.key: column for column in TABLE_1}
        return known.get(key) or Column(key, key, NEITHER, "")
    known = {column.key: column for column in FIGURES}
    if key in known:
        return known[key]
    if key.startswith("attribute_"):
        name = key.removeprefix("attribute_").replace("_", " ")
        return Column(key, f"· {name}", HIGHER, "", "share", TEXT)
    return Column(key, key.replace("_", " "), NEITHER, "", group=REST)


def ordered(keys: Iterable[str]) -> list[Column]:
    """Columns of these keys: by group, the known ones first and in their order, single attributes under all of them."""
    columns = [column_of(key) for key in dict.fromkeys(keys)]
    groups = [FACE, TEXT, REST, COST]
    known = {column.key: place for place, column in enumerate(FIGURES)}
    return sorted(columns, key=lambda one: (groups.index(one.group), known.get(one.key, len(known)), one.key))
