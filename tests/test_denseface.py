"""Dense-Face: golden data, the authors' checkpoint, poses, where the identity acts, dense heads, labels."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests import golden, golden_denseface
from tests.golden_check import compare, read
from tests.test_methods import DENSEFACE, POSES, Row, Setting
from tests.toy import toy_text_encoder, toy_unet

from feedface.checkpoints.denseface import DenseFaceFile, method_of
from feedface.common.errors import UserError
from feedface.data.labels import LEFT_RIGHT, Labels
from feedface.data.records import Record, read_records, write_records
from feedface.data.t2i_dense_face import PALETTE, palette_classes
from feedface.diffusion.batch import Draws
from feedface.diffusion.dense_losses import annotated, cell_centres, dense_losses
from feedface.diffusion.dense_objective import DenseObjective
from feedface.faces.parse import CLASS_NAMES
from feedface.faces.pose import MEDIAPIPE, face_pose, five_points, parse_pose
from feedface.faces.types import LAPA_VALUES, Face
from feedface.head_pose import draw_pose, mirrored, pose_hints
from feedface.methods.denseface_config import described_sites
from feedface.pose_branch import PoseBranch
from feedface.synthetic.world.dataset import make_portraits


def packed(name: str) -> dict:
    return json.loads(gzip.decompress((golden.FOLDER / f"{name}.json.gz").read_bytes()))


@pytest.mark.slow
def test_golden_arrays():
    config, arrays = read(golden.FOLDER / "denseface_A.npz")
    shapes = packed("denseface_A.shapes")
    lines, good = compare(golden_denseface.computed(config, arrays, shapes), arrays, golden_denseface.REASONS)
    assert good, "\n".join(lines)


# ------------------------------------------------------------------------------------------------------- their files


def state_of(keys: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Tensors of the shapes; the counter is a whole number."""
    return {
        key: torch.empty(shape, dtype=torch.long if key.endswith("num_batches_tracked") else None)
        for key, shape in keys.items()
    }


def test_every_name_of_the_released_file_has_its_place():
    from diffusers import UNet2DConditionModel

    from feedface.backbones.unet import UNet

    keys = packed("denseface_official")
    assert len(keys) == 1834
    with torch.device("meta"):
        backbone = UNet(UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=32))
        method = method_of(state_of(keys), backbone, "theirs")

    def millions(part: str, *kinds: str) -> float:
        found = [
            p.numel()
            for n, p in method.named_parameters()
            if n.startswith(part) and (not kinds or n.split(".")[-2] in kinds)
        ]
        return round(sum(found) / 1e6, 2)

    assert millions("adapters", "query", "key", "value") == 68.73
    assert millions("pose") == 233.53
    trained = dict(method.trained_parameters(backbone))
    learned = sum(p.numel() for n, p in trained.items() if n.startswith("adapters") and ".face." not in n)
    assert round(learned / 1e6, 2) == 36.13
    assert sum(".face." in name for name in trained) == 9
    assert len(method.sites) == 32
    assert method.readers == [n for n in method.sites if n.endswith("attn2") and not n.startswith("mid_block")]


def test_what_is_no_checkpoint_of_theirs_is_refused(tmp_path):
    keys = packed("denseface_official")
    state = {name: torch.zeros(1) for name in keys}
    file = tmp_path / "epoch=1.ckpt"
    for missing in ("embedding_manager.projector.weight", "control_model.middle_block_out.0.weight"):
        torch.save({"state_dict": {k: v for k, v in state.items() if k != missing}}, file)
        with pytest.raises(UserError, match=f"has no {missing}, so is none of Dense-Face's checkpoints"):
            DenseFaceFile(file)
    backbone = toy_unet()
    with torch.device("meta"):
        made = state_of(keys)
        made["control_model.new.0.weight"] = torch.empty(1)
        with pytest.raises(UserError, match=r"has no place in"):
            method_of(made, backbone, "here")


def narrow(shape: list[int]) -> list[int]:
    """A tenth as wide; texts of 16 numbers."""
    return [16 if size == 768 else size // 10 if size >= 320 and size % 320 == 0 else size for size in shape]


@torch.no_grad()
def test_a_file_of_theirs_is_read_part_by_part(tmp_path):
    from feedface.backbones.unet import UNet
    from feedface.checkpoints.ldm import SD1

    parts = (
        "model.diffusion_model.",
        "control_model.",
        "embedding_manager.",
        "first_stage_model.",
        "cond_stage_model.",
    )
    keys = {name: narrow(shape) for name, shape in packed("denseface_official").items() if name.startswith(parts)}
    state = {name: 0.1 * torch.randn(shape) for name, shape in keys.items() if "num_batches" not in name}
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "epoch=1.ckpt")
    unet = {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 16, "attention_head_dim": 8}
    file = DenseFaceFile(tmp_path / "epoch=1.ckpt", (replace(SD1, unet=unet),))
    backbone = UNet(file.unet(8, torch.float32))
    method = file.method(backbone, torch.float32)
    method.check(backbone, "here")
    theirs = state["model.diffusion_model.output_blocks.4.1.transformer_blocks.0.attn2.per_k.weight"]
    assert torch.equal(method.adapter("up_blocks.1.attentions.1.attn2").key.weight, theirs)
    assert torch.equal(method.token.word, state["embedding_manager.string_to_param_dict.*"][0])
    assert torch.equal(method.pose.controlnet_down_blocks[3].bias, state["control_model.zero_convs.3.0.bias"])


# -------------------------------------------------------------------------------------------------------------- poses


def test_a_frontal_head_is_drawn_right_down_and_as_a_dot():
    picture = draw_pose(0, 0, 0)
    assert picture.shape == (256, 256, 3)
    assert tuple(picture[127, 220]) == (255, 0, 0)
    assert tuple(picture[220, 127]) == (0, 255, 0)
    assert tuple(picture[127, 127]) == (0, 0, 255)
    assert tuple(picture[10, 10]) == (255, 255, 255)


@pytest.mark.parametrize(("pose", "where"), [((30, 0, 0), (0, -1)), ((0, 30, 0), (-1, 0))])
def test_the_nose_points_left_for_yaw_and_up_for_pitch(pose, where):
    blue = (draw_pose(*pose) == (0, 0, 255)).all(axis=-1)
    centre = np.argwhere(blue).mean(axis=0) - 127
    assert np.sign(np.where(abs(centre) < 5, 0, centre)).tolist() == list(where)


def test_mirrored_poses_draw_mirrored_noses():
    pose = torch.tensor([[25.0, 10.0, 0.0]])
    one, other = ((draw_pose(*p.tolist()) == (0, 0, 255)).all(axis=-1) for p in (pose[0], mirrored(pose)[0]))
    ours, theirs = np.argwhere(one).mean(axis=0) - 127, np.argwhere(other).mean(axis=0) - 127
    np.testing.assert_allclose(ours * (1, -1), theirs, atol=1)


def test_poses_of_faces_are_counted_as_they_are_drawn():
    """The portraits' own truth: the nose of a head turned to the picture's left is drawn to the left."""
    portraits = make_portraits(torch.arange(30), torch.zeros(30, dtype=torch.long), 0, 128)
    faces = [Face(box, 1.0, points) for box, points in zip(portraits.boxes, portraits.landmarks, strict=True)]
    found = np.array([face_pose(face, "mini") for face in faces])
    errors = np.abs(found - portraits.pose * (-1, -1, 1)).mean(axis=0)
    assert errors[0] < 2 and errors[2] < 2.5  # pitch: see `faces.pose.head_pose`
    for (yaw, _, _), points in zip(found, portraits.landmarks, strict=True):
        nose = points[2, 0] - points[:2, 0].mean()
        if abs(yaw) > 10:
            assert np.sign(nose) == -np.sign(yaw)


def test_poses_of_meshes_and_of_other_numbers_of_points():
    five = np.array([[40, 50], [80, 52], [65, 70], [45, 90], [75, 92]], float)
    mesh = np.zeros((468, 2))
    for group, point in zip(MEDIAPIPE, five, strict=True):
        mesh[list(group)] = point
    np.testing.assert_array_equal(five_points(mesh), five_points(five))
    with pytest.raises(UserError, match="68 landmarks: a pose is found from 5"):
        five_points(np.zeros((68, 2)))
    with pytest.raises(UserError, match="finds no landmarks to take a pose from"):
        face_pose(Face(np.zeros(4), 1.0), "opencv")


@pytest.mark.parametrize("text", ["", "1,2", "a,b,c", "95,0,0", "0,0,nan", "1,2,3,4", "0;0;0"])
def test_a_bad_pose_is_said(text):
    assert parse_pose("20,-5,0.5") == (20, -5, 0.5)
    with pytest.raises(UserError, match=r"--pose .*(give yaw,pitch,roll|out of range)"):
        parse_pose(text)


# --------------------------------------------------------------------------------------------------- where it acts


def setting(**control) -> Setting:
    return Setting(Row("denseface", "unet", {**DENSEFACE, **control}, identity=POSES))


@torch.no_grad()
def test_the_identity_is_read_in_attentions_to_the_text_and_not_in_the_middle():
    one = setting(adapters="all").trained()
    names = [site for site in one.method.sites if one.method.sites[site]["reads"]]
    assert names == [n for n in one.backbone.sites if n.endswith("attn2") and not n.startswith("mid")]
    everywhere = described_sites(one.backbone, reads_in_middle=True)
    assert [n for n in everywhere if everywhere[n]["reads"]] == [n for n in one.backbone.sites if n.endswith("attn2")]


@torch.no_grad()
def test_strength_is_delta():
    one = setting().trained()
    people = {"face": one.people()["face"]}
    halved = one.method.bind(one.backbone, people, 0.5)
    one.method.config["delta"] = 0.5
    expected = one.method.bind(one.backbone, people, 1.0)
    assert torch.equal(one.predict(halved)["img"], one.predict(expected)["img"])


@torch.no_grad()
def test_the_token_changes_its_own_place_alone():
    one = setting().trained()
    people = one.people()
    encoder, method = one.text_encoder, one.method
    # causal: what stands before the word is as it was, to rounding
    plain, shown = encoder.encode(["a b z c", "a b c"]), method.prompt(encoder, ["a b z c", "a b c"], people)["text"]
    torch.testing.assert_close(shown[:, :3], plain[:, :3])
    assert not torch.allclose(shown[0, 3], plain[0, 3])
    torch.testing.assert_close(shown[1], plain[1])  # no word, no person
    assert method.notice(encoder, "a b z c") is None
    assert "no free-standing 'z'" in method.notice(encoder, "a b c")


@torch.no_grad()
def test_words_may_have_weights_and_the_persons_too():
    one = setting().trained()
    encoder, method = one.text_encoder, one.method
    encoder.prefix = None
    prompts = ["a b z c", "a (b z:1.5) c"]
    plain, more = method.prompt(encoder, prompts, {name: value[:1] for name, value in one.people().items()})["text"]
    ratio = more / plain
    torch.testing.assert_close(ratio[2:4], 1.5 * ratio[:1].expand(2, -1))
    torch.testing.assert_close(ratio[4:], ratio[:1].expand(len(ratio) - 4, -1))
    assert method.notice(encoder, prompts[1]) is None


def test_a_word_of_several_tokens_is_refused():
    with pytest.raises(UserError, match="'zz' is 2 tokens"):
        setting(initial_word="zz")
    with pytest.raises(UserError, match="pose branch is for a U-Net"):
        Setting(Row("denseface", "uvit", DENSEFACE))


@torch.no_grad()
def test_the_pose_moves_the_picture_and_needs_a_branch():
    one = setting().trained()
    people = {"face": one.people()["face"]}
    left, right = (
        one.predict(one.method.bind(one.backbone, one.method.posed(people, (yaw, 0, 0)))) for yaw in (-30, 30)
    )
    assert not torch.allclose(left["img"], right["img"], atol=1e-5)
    with pytest.raises(UserError, match="no pose branch"):
        setting(pose=False).method.posed(people, (0, 0, 0))


def test_the_pose_branch_begins_as_the_unet_and_adds_nothing():
    unet = toy_unet().unet
    branch = PoseBranch(4, [16, 32], 1, (4, 4, 8, 8), 8)
    branch.copy_encoder(unet.state_dict())
    assert torch.equal(branch.conv_in.weight, unet.conv_in.weight)
    assert torch.equal(branch.mid_block["resnets"][1].conv1.weight, unet.mid_block.resnets[1].conv1.weight)
    hint = branch.embedded(torch.rand(2, 3, 64, 64))
    added = branch(torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), hint)
    assert [tuple(x.shape[1:]) for x in added] == [(16, 8, 8)] * 2 + [(16, 4, 4), (32, 4, 4), (32, 4, 4)]
    assert not any(x.any() for x in added)


def test_a_fresh_pose_branch_tells_drawings_apart():
    torch.manual_seed(0)
    branch = PoseBranch(4, [16, 32], 1, (8, 16, 32, 64), 8)
    seen = []
    branch.controlnet_cond_embedding.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    branch.embedded(pose_hints(torch.tensor([[-24.0, 0, 0], [24.0, 0, 0]]), (128, 128)))
    left, right = seen[0]
    assert (left - right).std() > 0.03  # 3e-6 with convolutions as PyTorch makes them


# ---------------------------------------------------------------------------------------------- labels, dense heads


def labelled(folder: Path) -> list[Record]:
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 4:12] = LAPA_VALUES[4]
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None], 32, 0)).save(folder / "depth.png")
    box = (4.0, 4.0, 28.0, 28.0)
    dense = {"landmarks": tuple((4.0 * i, 8.0) for i in range(1, 6)), "attributes": {"smiling": 0.75}}
    record = Record(
        folder / "a.png", "a happy woman", 32, 32, box, box, folder / "mask.png", pose=(10.0, 5.0, -2.0),
        depth_path=folder / "depth.png", **dense,
    )  # fmt: skip
    write_records(folder / "records.jsonl", [record])
    return read_records(folder / "records.jsonl")


def draws(*flips: bool) -> Draws:
    count = len(flips)
    no, t = torch.zeros(count, dtype=torch.bool), torch.full((count,), 500)
    noise = torch.zeros(count, 4, 8, 8)
    rows = torch.zeros(count, dtype=torch.long)
    return Draws(rows, torch.tensor(flips), no, no, no, no, t, noise, {"img": noise}, rows)


def test_labels_are_read_and_mirrored(tmp_path):
    records = labelled(tmp_path)
    labels = Labels(records, ("pose", "parsing", "depth", "landmarks", "attributes"), 16, ["smiling", "hat"], True)
    found = labels(draws(False, True))
    assert labels.captions(draws(True)) == ["a happy woman"]
    assert found["pose"].tolist() == [[10, 5, -2], [-10, 5, 2]]
    assert found["attributes"].tolist() == [[0.75, 0]] * 2
    parsing = found["parsing"].numpy()
    assert np.unique(parsing[0]).tolist() == [0, 4]
    np.testing.assert_array_equal(LEFT_RIGHT[parsing[0][:, ::-1]], parsing[1])
    assert CLASS_NAMES[5] == CLASS_NAMES[4].replace("right", "left")
    torch.testing.assert_close(found["depth"][0].flip(-1), found["depth"][1])
    first, second = found["landmarks"]
    assert first[0].tolist() == [4 / 32, 8 / 32]
    torch.testing.assert_close(second[1], torch.tensor([1 - first[0, 0], first[0, 1]]))


def test_records_without_labels_are_refused(tmp_path):
    (record,) = labelled(tmp_path)
    for kind, missing in {
        "pose": {"pose": None},
        "depth": {"depth_path": None},
        "landmarks": {"landmarks": ()},
    }.items():
        with pytest.raises(
            UserError, match=rf"records\.jsonl:1: has no {next(iter(missing))}, which this training needs"
        ):
            Labels([replace(record, **missing)], (kind,), 16, (), False)
    many = replace(record, landmarks=((1.0, 1.0),) * 68)
    with pytest.raises(UserError, match="68 landmarks cannot be mirrored"):
        Labels([many], ("landmarks",), 16, (), True)
    for bad in ('"pose": [0, 0, 200]', '"attributes": {"a": 2}', '"landmarks": [[1]]'):
        file = tmp_path / "bad.jsonl"
        file.write_text((tmp_path / "records.jsonl").read_text().replace("{", "{" + bad + ", ", 1))
        text = json.loads((tmp_path / "records.jsonl").read_text()) | json.loads("{" + bad + "}")
        file.write_text(json.dumps(text))
        with pytest.raises(UserError, match=r"bad\.jsonl:1: " + bad.split('"')[1]):
            read_records(file)


def test_dense_losses_are_small_for_what_is_right_and_annotations_say_it():
    parsing = torch.randint(11, (2, 8, 8))
    depth, points = torch.rand(2, 1, 8, 8) * 0.8 + 0.1, cell_centres(8, 8)[torch.tensor([[9, 30], [50, 3]])]
    heat = torch.full((2, 2, 64), -20.0).scatter(2, torch.tensor([[[9], [30]], [[50], [3]]]), 20.0)
    right = {
        "parsing": 30.0 * torch.nn.functional.one_hot(parsing, 11).permute(0, 3, 1, 2),
        "depth": depth.logit(),
        "landmarks": heat.unflatten(-1, (8, 8)),
        "attributes": torch.tensor([[20.0, -20.0]] * 2),
    }
    labels = {"parsing": parsing, "depth": depth, "landmarks": points, "attributes": torch.tensor([[1.0, 0.0]] * 2)}
    losses = dense_losses(right, labels)
    assert losses.keys() == labels.keys()
    assert all(losses[name].max() < 1e-3 for name in ("parsing", "depth", "attributes"))
    wrong = {name: value.flip(0) if name != "attributes" else -value for name, value in right.items()}
    assert all((dense_losses(wrong, labels)[name] > losses[name]).all() for name in losses)
    said = annotated(right)
    assert torch.equal(said["parsing"].long(), parsing)
    torch.testing.assert_close(said["depth"], depth)
    torch.testing.assert_close(said["landmarks"], points, atol=1e-3, rtol=0)


def test_prompts_have_the_persons_word_for_man_and_woman():
    one = setting(person_words=("man", "woman"))
    from ml_collections import ConfigDict

    loss = ConfigDict({"kind": "standard", "face_dropout_kind": "zero_feature", "min_snr": 0.0})
    config = ConfigDict({"control": {**DENSEFACE, "person_words": ("man", "woman")}, "loss": loss})
    objective: DenseObjective = one.method.objective(config, {}, torch.zeros(1, 2, 8))
    batch = type("Batch", (), {"captions": ["a Woman and a manor", "a dog"]})
    assert objective.prompts(draws(False, False), batch) == ["a z and a manor", "a dog"]
    batch.captions = ()
    assert objective.prompts(draws(False), batch) == ["a close-up photo of z ."]


def test_their_masks_are_classes_of_ours():
    found = palette_classes(np.repeat(PALETTE[None], 2, 0))
    assert [CLASS_NAMES[c] for c in found[0]] == [
        "background", "skin", "nose", "left_eye", "right_eye", "left_brow", "right_brow", "inner_mouth", "upper_lip",
        "lower_lip",
    ]  # fmt: skip


def test_dense_heads_learn_beside_and_change_nothing():
    control = {**DENSEFACE, "dense": {"width": 16, "blocks": 1, "attributes": ("smiling",)}}
    one = setting(**{k: v for k, v in control.items() if k == "dense"})
    assert one.method.labels == ["pose", "parsing", "depth", "landmarks", "attributes"]
    assert toy_text_encoder() is not None
    bound = one.method.bind(one.backbone, one.people())
    noise = one.predict(bound)
    heads = one.method.read_out(bound, one.state, one.t, noise)
    assert {name: tuple(value.shape) for name, value in heads.items()} == {
        "dense.parsing": (2, 11, 16, 16),
        "dense.depth": (2, 1, 16, 16),
        "dense.landmarks": (2, 5, 16, 16),
        "dense.attributes": (2, 1),
    }
    sum(value.square().sum() for value in heads.values()).backward()
    learned = {name.split(".")[0] for name, p in one.method.named_parameters() if p.grad is not None}
    assert learned == {"dense"}
    assert torch.equal(noise["img"], one.predict()["img"])
