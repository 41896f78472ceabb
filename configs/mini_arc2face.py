"""The miniature's Arc2Face, AdaFace's teacher: a reader of faces, and models/mini-unet trained to understand its words.

    python -m feedface.synthetic.world --out data/portraits --identities 200 --per-identity 10
    accelerate launch train.py --config=configs/mini_arc2face.py --workdir=workdir/mini-arc2face

The U-Net is trained too, as Arc2Face's was: one that knows captions alone hardly shows whose face it is told of. It is
also AdaFace's backbone: as Stable Diffusion, and other than models/mini-unet, it has to know faces that words tell of.
"""

from configs import mini_unet_face
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from FeedFace's on the same backbone."""
    config = mini_unet_face.get_config()
    config.method = "arc2face"
    config.control = ConfigDict(
        {
            "vectors": 8,  # tokens of a face
            "face_dim": 128,  # numbers of the recogniser's embedding
            "recogniser": "mini",  # the insightface pack that has it: the model's own
            "template": "photo of a",  # what is read before the face
            "face_length": 10.0,  # of the embedding among the token embeddings: of 1, little is left in the states
            "backbone": "all",  # what is trained of the U-Net: all of it, or nothing ("frozen")
            "captions": 0.5,  # share of batches with captions instead: what it knew of them stays
        }
    )
    config.data.max_faces = 1
    config.loss.kind = "standard"  # the whole picture: there is no prompt to keep to
    config.loss.face_dropout = 0.0
    config.loss.text_dropout = 0.1  # of the captions
    config.loss.min_snr = 5.0  # as the base model was trained
    config.train.update(batch_size=32, lr=5e-4, steps=3_000)
    config.cache.dir = "workdir/mini-arc2face/features"
    return config
