"""AdaFace on Stable Diffusion 1.5, first stage: distilled from Arc2Face. The authors' two rounds, on two GPUs:

accelerate launch --num_processes 2 --multi_gpu train.py --config=configs/adaface.py --workdir=workdir/adaface1
python -m feedface.checkpoints extend --from workdir/adaface1/checkpoints/last --to workdir/adaface1x4 --times 4
accelerate launch --num_processes 2 --multi_gpu train.py --config=configs/adaface.py --workdir=workdir/adaface2 \
    --config.model=workdir/adaface1x4 --config.control.copies=4

It needs Arc2Face (encoder/ and arc2face/ of https://huggingface.co/FoivosPar/Arc2Face, in models/arc2face), and
insightface's antelopev2 with its arcface.onnx in the place of glintr100.onnx: all for non-commercial research only.
"""

from configs import train_config
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from FeedFace's."""
    config = train_config.get_config()
    config.method, config.face_encoder = "adaface", ""
    config.model = "models/stable-diffusion-v1-5"  # a diffusers folder, or one .safetensors or .ckpt
    config.control = ConfigDict(
        {
            "teacher": "models/arc2face",  # or a model folder of this project with the method arc2face
            "vectors": 16,  # of a person; each is a token of the prompt
            "copies": 1,  # keys and values of a token: 1, or as many as the model to go on from was extended to
            "face_dim": 512,  # numbers of the recogniser's embedding
            "recogniser": "antelopev2",  # the insightface pack that has it: the teacher's own
            "template": "photo of a",  # what the towers read before a person
            "face_length": 1.0,  # of an embedding among the reader's token embeddings: the teacher's own
            "average": "embeddings",  # of several photos; or of "states", or "words"
            "placement": "in_place",  # of a person in prompts: at their word; or "append", "prepend"
            "subject_word": "z",  # a person's word in prompts
            "objective": {
                "kind": "distillation",  # or "reconstruction": on pictures alone, without a teacher's predictions
                "prompts": ("a photo of a {}", "a face portrait of a {}", "a photo of {}"),  # {}: the person's word
                "most_steps": 3,  # of the teacher's denoising in one step of training: 1, 2, 3, 5 or 7
                "random_faces": 0.4,  # share of batches with people that nobody is, without pictures
                "perturbed": 0.6,  # share of batches with one person whose states are somewhat changed
                "perturbation": (0.5, 1.5),  # how much, of the states' own spread
                "later": 0.7,  # share of batches at later times
                "word_noise": 0.4,  # share of batches with noise on the words
                "word_noise_spread": (0.05, 0.1),  # how much, of the words' own spread
                "layer_shares": (1.0, 2.0, 2.0),  # of the text encoder's last layers, Dirichlet; (): the last one
                "original_bugs": False,  # True: the student's first step sees what the authors' program shows it
                # "composition", the second stage:
                "compositions": (  # what follows a prompt: one of each list, "" is nothing
                    ("riding a bicycle", "cooking a meal", "reading a book", "playing a guitar", "dancing", "sitting"),
                    ("", "in a red coat", "in a space suit", "in a police uniform", "wearing a straw hat"),
                    ("in the rain", "on a beach", "in the jungle", "in a city at night", "in front of a castle"),
                    ("", "oil painting", "pencil sketch", "in the style of van gogh", "film still", "at sunset"),
                ),
                "class_word": "person",  # what stands in the person's place
                "composed": 1 / 3,  # share of batches with compositions
                "distilled": 0.2,  # share of the others that are the first stage's; the rest are pictures
                "captions": False,  # True: those with their captions, the person's word in them; not the authors'
                "before": 0.9,  # share of the words as they were before this stage, where a person is alone
                "guidance": 5.0,  # of the steps before the one that is learned from
                "weights": {"prompt": 2e-5, "mix": 5e-5, "preserve": 5e-4, "attention": 2e-4},  # of its losses
            },
        }
    )
    config.data.records = ("data/records.jsonl",)  # or the authors' folders: ("VGGface2_HQ_masks", "FFHQ_masks")
    config.data.max_faces = 1
    config.loss.face_dropout = 0.0
    config.train.steps = 60_000
    config.train.batch_size = 4
    config.train.accumulation = 2
    config.train.lr = 1e-5
    config.train.warmup_steps = 300
    config.train.weight_decay = 0.0
    config.train.betas = (0.9, 0.999)
    config.train.grad_clip = 0.5
    config.log.prompts = tuple(prompt.replace("person", "z") for prompt in config.log.prompts)
    return config
