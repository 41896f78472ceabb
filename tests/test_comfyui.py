"""The nodes of comfyui/, loaded and called the way ComfyUI does: its workflow, node by node."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from feedface.common.places import CHECKOUT
from feedface.pipeline import FeedFacePipeline

FOLDER = CHECKOUT / "comfyui"


@pytest.fixture(scope="module")
def nodes():
    spec = importlib.util.spec_from_file_location("custom_nodes.feedface", FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module.NODE_CLASS_MAPPINGS
    del sys.modules[spec.name]


class LoadImage:
    """ComfyUI's own."""

    FUNCTION = "load"

    def load(self, image):
        return (
            torch.from_numpy(np.asarray(Image.open(CHECKOUT / "assets" / image).convert("RGB")) / 255).float()[None],
        )


def run(workflow, nodes):
    """Each node after those whose outputs it takes: what ComfyUI's executor does."""
    outputs = {}
    for name in sorted(workflow):
        node = workflow[name]
        if node["class_type"] == "SaveImage":
            continue
        made = nodes[node["class_type"]]()
        inputs = {
            key: outputs[value[0]][value[1]] if isinstance(value, list) else value
            for key, value in node["inputs"].items()
        }
        outputs[name] = getattr(made, made.FUNCTION)(**inputs)
    return outputs


def test_the_workflow_draws_what_the_pipeline_does(nodes):
    workflow = json.loads((FOLDER / "workflow.json").read_text())
    outputs = run(workflow, {**nodes, "LoadImage": LoadImage})
    [images] = outputs["4"]
    assert images.shape == (2, 128, 128, 3) and images.dtype == torch.float32 and 0 <= images.min() < images.max() <= 1
    pipe = FeedFacePipeline.from_pretrained(CHECKOUT / "models/mini")
    pipe.set_faces([CHECKOUT / "assets/demo_face.png"], outputs["1"][0]["detector"])
    own = pipe.generate("a smiling woman in a green hoodie on a beach", 2, seed=7, progress=False)
    assert (np.stack([np.asarray(image) for image in own]) == (images * 255).round().numpy()).all()
    mean, each = outputs["5"]
    assert mean == pytest.approx(sum(map(float, each.split(", "))) / 2, abs=0.01)
    assert outputs["3"][1].shape[0] == 1


def test_every_input_of_the_workflow_is_a_nodes_own(nodes):
    for node in json.loads((FOLDER / "workflow.json").read_text()).values():
        if node["class_type"] in nodes:
            described = nodes[node["class_type"]].INPUT_TYPES()
            known = {**described["required"], **described.get("optional", {})}
            assert set(described["required"]) <= set(node["inputs"]) <= set(known)
    for cls in nodes.values():
        assert cls.CATEGORY == "FeedFace" and callable(getattr(cls, cls.FUNCTION)) and cls.RETURN_TYPES
