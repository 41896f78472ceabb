"""The paper's training of the face-controlnet (ICLR 2024 Tiny Papers, appendix B.2): 6 GPUs, 50 000 steps of 96.

accelerate launch --num_processes 6 --mixed_precision fp16 --multi_gpu train.py --config=configs/train_config.py \
    --workdir=workdir/feedface
Any value can be given by flag, as in --config.train.batch_size=8; an unknown key is an error.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Every key that training knows; the other configs change values of this one."""
    return ConfigDict(
        {
            "seed": 1234,
            "model": "models/feedface-v1",  # bundle with the frozen parts
            # Folder of a CLIP vision model, or a model whose face encoder is meant, to train a fresh face-controlnet as
            # `control` says; "" to go on from the bundle's own.
            "face_encoder": "models/clip-vit-base-patch32",
            "method": "feedface",  # what is trained; `control` has its settings
            "control": {
                # Blocks of the backbone that get a control block; () is every other one.
                "sites": tuple(f"{half}.{i}" for half in ("in_blocks", "out_blocks") for i in range(0, 14, 2)),
                "num_heads": 64,
                "mlp_ratio": 4.0,
                "control_input": "output",  # what a control block sees: "output" (release) or "input" (paper's figure)
                # False: image tokens do not attend to each other at the sites with the most of them.
                "self_attention": True,
            },
            "data_type": 0,  # the backbone's data-type token; 0 in the authors' training, 1 in their inference
            "data": {
                "records": ("configs/FFHQ_in_the_wild-llava_1_5_13b.jsonl",),
                # Mirror the target with its mask, and each reference for itself: half of the time, as the authors do
                # with the face crop (they leave the target as it is).
                "flip": 0.5,
                "flip_reference": 0.5,
                "hair_in_mask": 0.5,  # share of samples whose hair counts as face; the paper does not give it
                "other_picture": 0.5,  # share of samples whose reference is another picture, where `ref` lists some
                "max_faces": 1,  # references of a sample: 1 to this many, the same for all samples of a step
                "workers": 4,  # processes that read pictures; they are not used with the cache
                "in_memory": False,  # keep what training sees of the pictures, once for all workers
                # Pictures of 15 aspect ratios, each step's of one, cut at random, instead of their centre squares.
                "buckets": False,
                # Decode large JPEGs at 1/2, 1/4 or 1/8 where training sees them that small: faster, not bit for bit.
                "draft": False,
                "max_broken": 100,  # more files than this that cannot be used stop the run
            },
            "cache": {
                # Encode every picture, caption and face once, and keep the features in `dir`; "" is WORKDIR/features.
                # Naming a `dir` is enough to switch it on.
                "enabled": False,
                "dir": "",
                # Each picture has only so many draws of mirroring, noise, timestep and dropped text, and what the
                # frozen backbone predicts of them is kept here too, made when first asked; 0: new draws each time.
                "draws_per_picture": 0,
            },
            "loss": {
                "kind": "regularization",  # "regularization", "mask" or "standard"
                "standard_share": 0.1,  # share of samples with the standard loss
                "face_dropout": 0.1,
                "face_dropout_kind": "zero_feature",  # "zero_feature" (paper) or "zero_image" (release)
                "text_dropout": 0.0,
                "min_snr": 0.0,  # gamma of min-SNR weighting; 0 is off
                # The face mask is widened by this share of the picture's width. 0 as in the paper: hair that the frozen
                # model draws outside the mask then stays, also on who has none.
                "mask_margin": 0.0,
            },
            "train": {
                "steps": 50_000,
                "batch_size": 16,  # per process and micro-batch
                "accumulation": 1,
                # or "adamw8bit": its state takes a quarter of the memory (bitsandbytes, a GPU); or "prodigy", which
                # finds its own step size: with lr 1
                "optimizer": "adamw",
                "d_coef": 1.0,  # of Prodigy: what the step size that it finds is multiplied by
                "lr": 2e-5,
                "schedule": "constant",  # or "cosine", "linear"
                "warmup_steps": 100,
                "weight_decay": 0.03,
                "betas": (0.9, 0.9),
                "grad_clip": 1.0,  # 0 is off
                "ema": 0.0,  # decay of the weights' moving average; 0 is off
                "precision": "auto",  # "no", "fp16", "bf16", or what accelerate was launched with
                "gradient_checkpointing": True,  # less memory for more time
                "tf32": False,  # a GPU's float32 products with mantissas of 10 bits: faster, where float32 is left
                "compile": False,  # torch.compile of the blocks: minutes at the start, faster steps on a GPU
                "max_loss_ratio": 10.0,  # a mean loss so many times the lowest one stops the run; 0 is off
            },
            "checkpoint": {
                "every": 2_000,  # steps
                "keep": 2,
                "keep_every": 10_000,  # these are kept for good; 0: none
                "in_background": False,  # write them while training goes on, from a copy in main memory
            },
            "log": {
                "every": 20,  # steps
                "trackers": ("tensorboard",),  # "tensorboard", "wandb"
                "samples_every": 48_000,  # samples seen between grids of pictures in WORKDIR/samples; 0: none
                "people": 4,  # the first so many of the records, a row each
                "prompts": (
                    "a photo of a smiling person in a garden",
                    "a person with glasses reading a book in a cafe",
                    "an oil painting of a person in a red coat",
                    "a person wearing a hat on a beach at sunset",
                ),
            },
        }
    )
