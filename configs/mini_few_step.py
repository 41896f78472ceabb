"""Distilling models/mini to four evaluations without guidance, on one CPU core; docs/few_steps.md says what is what.

python distill.py trajectories --workdir .cache/few_step
python distill.py train --workdir .cache/few_step
python distill.py add --workdir .cache/few_step --model models/mini
"""

from ml_collections import ConfigDict

from feedface.training.fit import fit_config


def get_config() -> ConfigDict:
    config = ConfigDict(
        {
            "model": "models/mini",  # its own guidance, face_scale and uncond are what is distilled
            "precision": "fp32",  # of the networks; the trained matrices are always float32
            "seed": 0,
            "data": {
                # As `make mini` leaves them: never people of the evaluation, 20000 and more.
                "records": (".cache/mini/world/train/records.jsonl",),
                "max_broken": 0,
            },
            "timesteps": (1000, 740, 450, 170),  # one evaluation each, then 0
            "trajectories": {
                "substeps": 3,  # the teacher's guided evaluations for each of the student's
                "batch_size": 64,  # trajectories in a shard
                "count": 2560,
                "minutes": 0.0,  # stop a run after so many (0: not)
                "faces": (1, 1, 0, 1, 2, 1, 1, 3, 1, 5),  # pictures of the person, shard after shard; 0: nobody
            },
            "rank": {"uvit": 12, "face_controlnet": 8},
            "own_states": 0.75,  # share of rows that go on from where the student has come to
            "clip_weight": 0.1,
            "held_out": 2,  # shards only measured on
            "gradient_checkpointing": False,
            # A sample is one trajectory: four evaluations, forward and back.
            "train": fit_config(
                minutes=15.0, batch_size=8, lr=2e-3, warmup_steps=30, weight_decay=0.0, ema_decay=0.99,
                save_every_s=60.0,
            ),
            # Then with a critic, from where that ended; minutes 0 leaves it out. A sample is four evaluations of the
            # student and three of the model that the critic sees with.
            "refine": fit_config(
                minutes=72.0, batch_size=16, lr=1e-3, critic_lr=3e-3, betas=(0.5, 0.99), schedule="trapezoid",
                warmup_steps=60, weight_decay=0.0, grad_clip=10.0, ema_decay=0.99, save_every_s=60.0,
                sites=("in_blocks.2", "mid_block", "out_blocks.2"),  # behind these blocks the critic looks
                noise=400,  # it is shown pictures with noise as at timesteps 1 to this one
                penalty=2.0,  # on its steepness
                anchor=0.06,  # weight of the distance to the teacher's states
                patch=2,  # latent cells over which that is averaged
                likeness=1.0,  # weight of whose face it is
            ),
        }
    )  # fmt: skip
    return config.lock()
