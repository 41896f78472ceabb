"""Dense-Face in miniature, on two CPU cores, with portraits whose renderer knows the truth.

python -m feedface.synthetic.world --out data/portraits --identities 200 --per-identity 10 --dense
python train.py --config=configs/mini_denseface.py --workdir=workdir/mini_denseface
"""

from configs import denseface, mini_face
from ml_collections import ConfigDict

# What the portraits' records say of each picture and can be seen in it.
ATTRIBUTES = (
    *("gender man", "gender woman"),
    *("expression neutral", "expression smile", "expression laugh", "expression sad", "expression surprised"),
    *("hat none", "hat cap", "hat beanie", "hat sun hat"),
    *("glasses none", "glasses glasses", "glasses sunglasses"),
)


def get_config() -> ConfigDict:
    """What differs from the miniature's other training, and from Dense-Face at full size."""
    config, full = mini_face.on_portraits(), denseface.get_config()
    config.model = "models/mini-unet-arc2face"  # it knows people that words tell of; with mini-unet's nobody came out
    config.method, config.control = full.method, full.control
    config.control.update(
        # No weights of theirs to keep to: stronger additions learn faster.
        delta=1.0,
        token_delta=10.0,
        adapters="all",
        reads_in_middle=True,
        hint_channels=(8, 16, 32, 64),
        guided="all",
        face_dim=128,
        recogniser="mini",
        initial_word="man",
        subject_word="*",
    )
    config.control.dense.update(width=32, blocks=2, attributes=ATTRIBUTES)
    config.data.update(other_picture=1.0, flip=0.0, max_faces=1)
    config.loss = full.loss
    # Half of the samples by their face alone, where a person is to be seen; as the base model was trained.
    config.loss.update(kind="mask", standard_share=0.5, min_snr=5.0)
    config.train.update(batch_size=32, lr=7e-4, warmup_steps=60, schedule="cosine", ema=0.99, steps=3_000)
    config.log.prompts = (
        "a photo of a smiling * in a green hoodie on a beach",
        "a photo of a * in a blue suit with glasses in front of a brick wall",
        "a sad * in a city at night",
        "a surprised * with a red cap in a forest",
    )
    return config
