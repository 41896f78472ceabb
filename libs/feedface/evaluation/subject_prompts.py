"""What people, animals and things are asked for in AdaFace's evaluation, and files of it.

Twenty-two prompts of DreamBooth's form for people and animals, 25 for things, and 25 of what a community draws; 484 for
22 people. A line of a list file: number of pictures, folder, prompt, and what CLIP is asked, long and short, with tabs
between them.
Source: Ruiz et al. 2023, "DreamBooth", whose places and dresses these are; Feng et al. 2024, "AdaFace", whose numbers.
The community's prompts are this project's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.reading import check_file

THINGS, PEOPLE, OTHERS = 0, 1, 2  # classes of subjects; the last are animals and cartoons
SETS = ("dreambench", "community", "all")
FACE = "face portrait"  # in what is drawn, so that the face is large; CLIP is not asked for it
MOST_LETTERS = 80  # of a folder's name

PLACES = (
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
)
DRESSES = (
    "wearing a red hat",
    "wearing a santa hat",
    "wearing a rainbow scarf",
    "wearing a black top hat and a monocle",
    "in a chef outfit",
    "in a firefighter outfit",
    "in a police outfit",
    "wearing pink glasses",
    "wearing a yellow shirt",
    "in a purple wizard outfit",
)
FOR_PEOPLE = (*PLACES, *DRESSES, "in a red light", "in a purple light")
FOR_THINGS = (
    *PLACES,
    "with a wheat field in the background",
    "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background",
    "floating on top of water",
    "floating in an ocean of milk",
    "on top of green grass with sunflowers around it",
    "on top of a mirror",
    "on top of the sidewalk in a crowded street",
    "on top of a dirt road",
    "on top of a white rug",
    "painted red",
    "painted purple",
    "made of glass",
    "wet with rain",
    "in the shape of a cube",
)
COMMUNITY = (
    "as a knight in shining armor, dramatic light",
    "as an astronaut on the moon, film still",
    "as a medieval queen or king on a throne, oil painting",
    "as a pirate on a ship in a storm",
    "as a wizard casting a spell, fantasy art",
    "as a detective in a rainy city, film noir",
    "as a robot, concept art",
    "as a statue of white marble in a museum",
    "as a superhero above a city, comic book",
    "in a cyberpunk street with neon signs",
    "in a field of lavender at sunset",
    "in a library full of old books",
    "in a garden with butterflies, watercolor",
    "playing the violin on a stage",
    "cooking in a busy kitchen",
    "riding a white horse through a forest",
    "reading a newspaper in a cafe in Paris",
    "holding a bouquet of flowers, studio light",
    "drinking tea in a japanese garden",
    "dancing in the rain at night",
    "as a pencil sketch on old paper",
    "in the style of a stained glass window",
    "as a character of a 3d animated film",
    "in the style of a ukiyo-e woodblock print",
    "as a lego figure",
)


@dataclass(frozen=True)
class SubjectPrompt:
    """What is drawn, and what CLIP is asked about it."""

    prompt: str
    asked: str


def subject_prompts(which: str, class_word: str, kind: int = PEOPLE, word: str = "z") -> list[SubjectPrompt]:
    """Those of a set, one of `SETS`, for a subject of a class, such as "young man"; `word` stands for the subject.

    Things have one set, whatever is asked for.
    """
    if which not in SETS:
        raise UserError(f"--prompt_set {which!r}: use one of {', '.join(SETS)}")
    if kind == THINGS:
        tails = FOR_THINGS
    else:
        tails = {"dreambench": FOR_PEOPLE, "community": COMMUNITY, "all": (*FOR_PEOPLE, *COMMUNITY)}[which]
    subject = f"a {word}, {FACE}," if kind == PEOPLE else f"a {class_word} {word},"
    return [SubjectPrompt(f"{subject} {tail}", f"a {class_word} {tail}") for tail in tails]


def list_name(subject: str, which: str, vectors: int) -> str:
    """How the authors call such a file."""
    return f"{subject}-prompts-{which}-{vectors}.txt"


def write_list(file: Path, subject: str, prompts: Sequence[SubjectPrompt], class_word: str, count: int = 4) -> None:
    """Whole or not at all."""
    lines = []
    for entry in prompts:
        folder = f"{subject}-{entry.asked.replace(' ', '-')}"[:MOST_LETTERS]
        lines.append("\t".join((str(count), folder, entry.prompt, entry.asked, f"a {class_word}")))
    with atomic_file(file) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_list(file: Path) -> list[SubjectPrompt]:
    """`UserError` with the line for what is no list of this form."""
    check_file(file)
    found = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file}: is no text in UTF-8") from None
    for number, line in enumerate(lines, start=1):
        parts = line.split("\t")
        if not line.strip():
            continue
        if len(parts) != 5 or not parts[0].isdigit() or not parts[2].strip() or not parts[3].strip():
            raise UserError(f"{file}:{number}: wants number, folder, prompt, long and short class prompt, by tabs")
        found.append(SubjectPrompt(parts[2], parts[3]))
    if not found:
        raise UserError(f"{file}: has no prompts")
    return found
