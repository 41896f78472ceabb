"""The miniature's AdaFace, first stage: distilled from the teacher that configs/mini_arc2face.py trains.

    accelerate launch train.py --config=configs/mini_adaface.py --workdir=workdir/mini-adaface
    python inference.py --model workdir/mini-adaface/checkpoints/last --image assets/demo_face.png \\
        --prompt "a photo of z in a green hoodie on a beach"
"""

from configs import adaface, mini_arc2face
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from its teacher's."""
    config = mini_arc2face.get_config()
    own = mini_arc2face.get_config().control.to_dict()
    del own["backbone"], own["captions"]  # AdaFace leaves the backbone as it is
    config.method = "adaface"
    config.model = "workdir/mini-arc2face/checkpoints/last"  # its backbone; models/mini-unet's knows captions alone
    config.control = ConfigDict({**adaface.get_config().control.to_dict(), **own})
    config.control.teacher = "workdir/mini-arc2face/checkpoints/last"
    objective = config.control.objective
    objective.prompts = ("a photo of {}", "a photo of {} in front of a wall", "{}")
    # Two more steps of the teacher cost two samples; people that nobody is are far from those of a world this small.
    objective.most_steps, objective.random_faces, objective.perturbed = 1, 0.1, 0.2
    config.cache.dir = "workdir/mini-adaface/features"
    config.train.update(grad_clip=0.5, lr=1e-3, steps=600)
    config.log.prompts = (
        "a photo of z in a green hoodie on a beach",
        "a photo of z in a blue suit with glasses in front of a brick wall",
        "a photo of sad z in a city at night",
        "a photo of z with a red cap in a forest",
    )
    return config
