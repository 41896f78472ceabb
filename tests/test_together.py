"""Two methods at once: words in the prompt and tokens beside the backbone add up."""

import json

import numpy as np
import pytest
import torch
from tests.test_methods import ADAFACE, CLIP, FEEDFACE, SMALL, Row, Run, Setting

from feedface.commands.inference import main
from feedface.common.errors import UserError
from feedface.diffusion.state import expand
from feedface.evaluation.generators import Bundles, ModelGenerator
from feedface.evaluation.protocols import Case
from feedface.evaluation.systems import read_systems
from feedface.inference.model_files import model_with
from feedface.methods.together import Together
from feedface.pipeline import FeedFacePipeline
from feedface.settings import Settings

SITES = {"uvit": ("in_blocks.0", "out_blocks.0"), "unet": ("mid_block.attentions.0", "up_blocks.1.attentions.1")}


@pytest.mark.parametrize("backbone", SITES)
@torch.no_grad()
def test_both_act_and_each_as_alone(backbone: str):
    tokens = Setting(Row("feedface", backbone, {**FEEDFACE, "sites": SITES[backbone]}, CLIP)).trained()
    words = Setting(Row("adaface", backbone, ADAFACE)).trained()
    method = Together([tokens.method, words.method])
    crops, faces = torch.rand(2, 3, *[method.reference.parts[0].size] * 2), torch.randn(2, 3)
    features = {name: value[:, None] for name, value in method.features([crops, faces]).items()}
    people = method.identity(features)
    assert people.keys() == {"feedface.tokens", "adaface.words", "adaface.pads"}
    text_encoder = words.text_encoder
    prompt = method.prompt(text_encoder, ["a z", "b z"], people)
    alone = words.method.prompt(text_encoder, ["a z", "b z"], words.method.identity({"face": features["adaface.face"]}))
    assert torch.equal(prompt["text"], alone["text"])
    control = method.bind(tokens.backbone, people)
    own = tokens.method.bind(tokens.backbone, tokens.method.identity({"faces": features["feedface.faces"]}))
    net, t = tokens.backbone, tokens.t
    plain = net.conditions({"text": text_encoder.encode(["a z", "b z"])})
    told = net.conditions(prompt)
    pictures = [
        net(tokens.state, t, conditions, acting)["img"]
        for conditions, acting in ((plain, None), (told, None), (plain, control), (told, control), (told, own))
    ]
    assert torch.equal(pictures[3], pictures[4])
    assert all(not torch.equal(pictures[3], other) for other in pictures[:3])
    assert method.bind(net, people, scale=0) is None
    nobody = method.unconditional(expand(people, 2), "paper")
    assert nobody is None or nobody.keys() == people.keys()


def test_what_does_not_go_together():
    words, small = (Setting(row).method for row in (Row("adaface", "unet", ADAFACE), Row("flashface", "unet", SMALL)))
    with pytest.raises(UserError, match=r"^--method adaface\+adaface: both would stand in the same place"):
        Together([words, words])
    assert Together([small, words]).reference.kind == "several"
    with pytest.raises(UserError, match="two methods at once are no model folder's"):
        Together.from_config({})


def test_a_pipeline_with_both(tmp_path, capsys):
    run = Run(Row("feedface", "unet", {**FEEDFACE, "sites": ()}), tmp_path)
    run.train("tokens", **{"train.steps": 2})
    words = Run(Row("adaface", "unet", ADAFACE), tmp_path)
    words.train("words", **{"train.steps": 1, "cache.dir": str(tmp_path / "others")})
    model, other = (tmp_path / name / "checkpoints/last" for name in ("tokens", "words"))
    photo, drawn = run.folder / "records/images/0_0.png", []
    pipes = ((model, None, False), (model, other, False), (model, other, True))
    for path, ckpt, together in pipes:
        pipe = FeedFacePipeline.from_pretrained(path, ckpt_path=ckpt, together=together, device="cpu")
        pipe.set_faces([photo])
        drawn.append((pipe.generate("a z", seed=1, progress=False)[0].tobytes(), pipe.digest))
    assert len({picture for picture, _ in drawn}) == len({digest for _, digest in drawn}) == 3
    assert model_with("feedface+adaface", model, other) == model
    for arguments, message in (
        (("feedface+adaface", model, None), "give one of two methods with --model, the other with --ckpt_path"),
        (("feedface+flashface", model, other), "the method of --ckpt_path .* is adaface"),
        (("flashface+adaface", model, other), "--method flashface: the method of .* is feedface"),
    ):
        with pytest.raises(UserError, match=message):
            model_with(*arguments)
    entries = [{"name": name, "model": str(model), "ckpt_path": str(other), "method": name}
               for name in ("feedface+adaface", "adaface")]  # fmt: skip
    (tmp_path / "systems.json").write_text(json.dumps(entries))
    bundles, crop = Bundles(torch.device("cpu"), torch.float32), np.zeros((8, 8, 3), np.uint8)
    asked = Case("ann", ("a photo of a man",), (0,), [crop], [crop], *(np.ones((1, 2)),) * 2)
    for system in read_systems(tmp_path / "systems.json", [1], Settings()):
        generator = ModelGenerator(system, bundles.get(system), bundles.device, bundles.dtype)
        assert generator.bundle.method.kind == ("together" if "+" in system.name else "adaface")
        assert generator.info(asked, 0, 0).prompt == "a photo of a z"
        assert generator.base.info(asked, 0, 0).prompt == "a photo of a man"
    command = ["--model", str(model), "--ckpt_path", str(other), "--method", "feedface+adaface", "--low_memory"]
    command += ["--image", str(photo), "--no_detect", "--prompt", "a z", "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--low_memory: is for one method"):
        main(command)
