"""Dense-Face on Stable Diffusion 1.5 at 256 px, on one GPU: a person from one photo, with the head turned as asked.

accelerate launch --mixed_precision bf16 train.py --config=configs/denseface.py --workdir=workdir/denseface

The model must be one of 256 px; records need a pose and, for the dense heads, landmarks and depth
(`make_data.py --dense`). The recogniser is insightface's buffalo_l, for non-commercial research only.
"""

from configs import train_config
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from FeedFace's. The authors' run: batch 4, learning rate 4e-6, no dropping, no average."""
    config = train_config.get_config()
    config.method, config.face_encoder = "denseface", ""
    config.model = "models/stable-diffusion-v1-5"
    config.control = ConfigDict(
        {
            "adapters": "decoder",  # attentions with something added: on the way up, as the authors train; or "all"
            "reads_in_middle": False,  # with "all": whether the middle block's attention to the text reads the face too
            "delta": 0.01,  # strength of what is added
            "token_delta": 0.01,  # and of the face in the person's word
            "norm": "layer",  # of that; "batch" is the authors', whose stored statistics count
            "pose": True,  # the branch that reads a drawing of the head's pose
            "hint_channels": (16, 32, 96, 256),  # of the convolutions that read it
            "guided": "text",  # guidance leads away from the "text" alone, or from person and pose too ("all")
            "face_dim": 512,  # numbers of the recogniser's embedding
            "recogniser": "buffalo_l",  # the insightface pack that has it
            "subject_word": "*",  # the person's word in prompts, one token
            "initial_word": "person",  # what that word means before a face is added
            "caption": "",  # of all pictures, such as "a close-up photo of {} ."; "": the records' own
            # words of captions that the person's word takes the place of
            "person_words": ("man", "woman", "person", "boy", "girl", "guy", "lady", "gentleman", "soldier"),
            "pose_dropout": 0.1,  # share of batches without a pose
            "dense": {
                "depth": True,  # needs records that have it; make_data.py cannot tell it
                "landmarks": 5,  # points; 0: no such head
                "attributes": (),  # names in the records
                "width": 128,  # of the heads' convolutions
                "blocks": 4,  # how many of them
                "factor": 2,  # cells of their maps along a latent's cell
                "parsing_weight": 0.1,  # of the losses beside the noise's
                "depth_weight": 0.1,
                "landmarks_weight": 0.1,
                "attributes_weight": 0.1,
            },
        }
    )
    config.data.update(max_faces=1, flip=0.5, other_picture=1.0)
    config.loss.update(kind="standard", text_dropout=0.1, face_dropout=0.1, face_dropout_kind="zero_feature")
    config.train.update(batch_size=16, lr=1e-5, gradient_checkpointing=False)
    config.log.prompts = tuple(prompt.replace("person", "*") for prompt in config.log.prompts)
    return config
