"""The options of inference.py."""

from pathlib import Path

from feedface.common.command_line import Parser
from feedface.common.errors import path_flag
from feedface.settings import PRESET_NAMES, UNCOND_MODES

MODES = ("edit", "generate", "inpaint")


def make_parser(description: str | None = None) -> Parser:
    parser = Parser(prog="inference.py", description=description)
    _what(parser)
    _begin(parser)
    _faces(parser)
    _model(parser)
    _sampling(parser)
    return parser


def _what(parser: Parser) -> None:
    """What to draw."""
    group = parser.add_argument_group("what to draw")
    group.add_argument("--prompt", help="what the picture shows; (word:1.3) counts more, (word:0.6) less")
    group.add_argument(
        "--negative_prompt", help="what the picture is led away from; needs a model or --uncond with an empty prompt"
    )
    group.add_argument("--image", nargs="+", metavar="FILE", help="pictures of one person")
    group.add_argument(
        "--person",
        action="append",
        metavar="NAME[:WORD]=FILE,…",
        help="pictures of somebody, or a .person file, by a name that the prompt uses; once for each person. The name "
        "stands for 'a person', or for WORD",
    )
    group.add_argument(
        "--region",
        action="append",
        metavar="NAME=X0,Y0,X1,Y1",
        help="where in the picture that person is, in parts of it, or a mask file; without it faces are found in a "
        "picture drawn without them, from the left",
    )
    group.add_argument(
        "--save_person", type=path_flag("--save_person"), metavar="FILE.person", help="keep the person of --image"
    )
    group.add_argument(
        "--blend", nargs="+", metavar="FILE", help="pictures of another person to blend with (flashface)"
    )
    group.add_argument(
        "--blend_weight", type=float, default=0.5, help="how much of the other person is shown, 0 to 1 (0.5)"
    )
    group.add_argument(
        "-j",
        "--json",
        nargs="+",
        metavar="FILE",
        help="job files, or folders of them, instead; a job may set its own "
        "seed, n_samples, preset, guidance, face_scale, size, negative_prompt and others",
    )
    group.add_argument("--output", type=path_flag("--output"), default=Path("outputs"), help="folder to write to")
    group.add_argument(
        "--format", choices=("png", "jpeg", "webp"), default="png", help="of the pictures (png keeps every bit)"
    )


def _begin(parser: Parser) -> None:
    """A picture to begin with."""
    group = parser.add_argument_group("a picture to begin with")
    group.add_argument(
        "--mode",
        choices=MODES,
        help="edit: the prompt alone, with nobody's face; generate: the whole picture shows the person; inpaint: the "
        "face in --base does (default: inpaint with --base, else generate)",
    )
    group.add_argument("--base", metavar="FILE", help="picture, or folder of them, whose face is drawn anew")
    group.add_argument(
        "--people", metavar="FOLDER", help="with a folder as --base: NAME/ (or NAME/images/) with photos of each person"
    )
    group.add_argument("--init", metavar="FILE", help="picture that is changed, by --strength")
    group.add_argument(
        "--mask",
        metavar="FILE",
        help="grey picture as large as --init or --base (or a folder, of the names in --base): white is kept, black is "
        "drawn anew; without it, of --base the face is",
    )
    group.add_argument(
        "--strength", type=float, default=1.0, help="how much is drawn anew: above 0 to 1, all of it (default: 1)"
    )
    group.add_argument(
        "--dense",
        action="store_true",
        help="beside each picture its face parts, depth and landmarks, as the model sees them (denseface with dense "
        "heads): NUMBER_dense.png, and NUMBER_dense.json with landmarks and attributes",
    )
    group.add_argument(
        "--pose",
        metavar="YAW,PITCH,ROLL",
        help="how the head is turned, in degrees (denseface): to the picture's left, up, clockwise; or a photo to take "
        "it from (default with --base: its own)",
    )


def _faces(parser: Parser) -> None:
    """How faces are found."""
    group = parser.add_argument_group("faces")
    group.add_argument("--no_detect", action="store_true", help="the pictures already are face crops")
    group.add_argument(
        "--detector",
        default="auto",
        help="mini (the model's own pack), yunet (photos; fetched when first used; yunet+sface or yunet+FILE.onnx for "
        "a recogniser with it), opencv (needs no download), buffalo_l or another insightface pack (non-commercial "
        "research only); auto (default): the first that is there of mini, buffalo_l, yunet and opencv",
    )
    group.add_argument(
        "--face",
        metavar="WHICH",
        help="of several faces in a picture: most-like (the other pictures' faces; the default if the detector has a "
        "recogniser, as mini and buffalo_l), largest (else the default), left, right, or N, the N-th from the left",
    )


def _model(parser: Parser) -> None:
    """Who draws."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=path_flag("--model"),
        help="model folder, user/name of the Hugging Face hub, or a Stable Diffusion 1.x or 2.x: a diffusers folder, "
        ".safetensors or .ckpt (default: the "
        "one --ckpt_path belongs to, else the config's, else models/mini)",
    )
    group.add_argument(
        "--method",
        metavar="KIND",
        help="how the person is shown, feedface, flashface or adaface: the model must have it; without --model, the "
        "first of models/ that has it; feedface+adaface: one of them is the model's, the other that of --ckpt_path",
    )
    group.add_argument(
        "--ckpt_path",
        type=path_flag("--ckpt_path"),
        help="method to use: feed-4800000.pt, our folder, a training checkpoint",
    )
    group.add_argument(
        "--lora",
        nargs="+",
        default=(),
        metavar="FILE[:STRENGTH]",
        help="LoRA files (.safetensors) for Stable Diffusion, each with its strength (default: 1)",
    )
    group.add_argument(
        "--clip_skip", type=int, default=0, help="last layers of Stable Diffusion's text encoder to leave out (0)"
    )
    group.add_argument(
        "--subject_word",
        metavar="WORD",
        help="with AdaFace, the person's word in prompts: 'a photo of z on a beach' (default: the model's, z)",
    )
    group.add_argument("--config", help="config file (.py): its `model`, `control` and `sample`; options come first")
    group.add_argument("--device", default="auto", help="auto (default), cuda, cuda:N, mps or cpu")
    group.add_argument(
        "--dtype",
        default="auto",
        help="auto (default: fp16 on a GPU, on a CPU bf16 where that is faster), fp32, bf16 or fp16",
    )
    group.add_argument(
        "--low_memory",
        action="store_true",
        help="have one part of the model in memory at a time, each read once a run: all texts, then all latents, then "
        "all pictures; the least memory, the same pictures, which come at the end",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the model's blocks: faster steps after a minute of compiling; needs a C++ compiler",
    )
    group.add_argument(
        "--cuda_graphs",
        action="store_true",
        help="compile them and replay them as CUDA graphs, so that the GPU does not wait for Python: helps most at "
        "small sizes; recorded anew for each size and batch. Not tried on a GPU yet",
    )
    group.add_argument(
        "--int8",
        action="store_true",
        help="weights in 8 bits: a quarter of fp32's memory, and faster on a CPU only; pictures change a little, on a "
        "CPU also with the batch they are in",
    )


def _sampling(parser: Parser) -> None:
    """How it is drawn."""
    group = parser.add_argument_group("sampling (defaults: the model's own, else preset balanced)")
    group.add_argument("--n_samples", type=int, default=1, help="pictures per prompt (default: 1)")
    group.add_argument("--n_iter", type=int, default=1, help="how many times n_samples (default: 1)")
    group.add_argument(
        "--best",
        type=int,
        metavar="N",
        help="of each prompt's pictures, the contact sheet shows the N most like the "
        "person, and results.json names them; all are kept",
    )
    group.add_argument(
        "--batch_size",
        type=int,
        help="pictures drawn at a time, of whichever prompts and people (default: what should fit into memory); more "
        "is faster on a GPU and takes more memory",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="of a prompt's first picture; the next add 1 each; -1: any, which is said"
    )
    group.add_argument(
        "--preset",
        choices=PRESET_NAMES,
        help="how much work a picture takes: quality (approximates nothing), balanced, or fast (the model's few-step "
        "adapter if it has one); sets steps, scheduler, intervals and reuse, which may each be given beside it",
    )
    group.add_argument("--steps", type=int, help="evaluations of the model, 1 to 999: time grows with them")
    group.add_argument(
        "--scheduler",
        metavar="NAME",
        help="solver: dpmsolver++, dpmsolver++3m or unipc (the same time a step; also with :karras or :uniform), "
        "dpmsolver++singlestep (the release's), ddim",
    )
    group.add_argument(
        "--guidance_interval",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="guidance only at these timesteps, of 0 (clean) to 1000 (noise): a step outside takes about half the "
        "time; a narrow interval follows the prompt less",
    )
    group.add_argument(
        "--face_interval",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="the face only at these timesteps: saves its share of the steps outside; a narrow interval costs likeness",
    )
    group.add_argument(
        "--reuse",
        type=int,
        metavar="K",
        help="evaluate the model's deep blocks at every K-th step only: faster steps, less exact (1: at each)",
    )
    group.add_argument(
        "--guidance",
        type=float,
        nargs="+",
        metavar="G",
        help="g in e_u + g (e_c - e_u), 0 to 50; the paper's and release's scale is g - 1; two numbers: of the first "
        "and the last step",
    )
    group.add_argument(
        "--rescale",
        type=float,
        help="takes a guided prediction's contrast back to that of the prompt alone, 0 (not at all) to 1",
    )
    group.add_argument(
        "--pag_scale",
        type=float,
        metavar="S",
        help="perturbed-attention guidance, 0 (none) to 10: cleaner faces, less alike; half as much time again",
    )
    group.add_argument(
        "--pag_interval",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="that guidance only at these timesteps: where noise is high it decides structure and costs least likeness",
    )
    group.add_argument(
        "--uncond",
        choices=UNCOND_MODES,
        help="what guidance leads away from: noise in the text's place (true_uncond; U-ViT), the empty or negative "
        "prompt (empty_token), or that with a zero face (paper); default: the model's",
    )
    group.add_argument("--face_scale", type=float, help="strength of the face, 0 to 5 (release: 0.8)")
    group.add_argument(
        "--face_box",
        nargs=4,
        type=float,
        metavar=("X1", "Y1", "X2", "Y2"),
        help="where the face shall be, in shares of width and height, 0 to 1 (flashface_official)",
    )
    group.add_argument("--size", help="of the pictures in pixels: 512, or 512x768 (width x height)")
