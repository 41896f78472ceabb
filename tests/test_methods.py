"""What every method promises on every backbone: one table, one set of contracts that each row passes.

A new method adds a row; `test_a_new_method_is_three_files` shows that it needs nothing else.
"""

import difflib
import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from configs import mini_face
from ml_collections import ConfigDict
from PIL import Image
from tests.test_faces_detect import redness, write_pack
from tests.toy import CLIP_CONFIG, make_toy_bundle, toy_text_encoder, toy_unet, toy_uvit
from tests.toy_records import make_records
from torch import Tensor

import feedface.methods
from feedface.backbones.base import Backbone, backbone_class
from feedface.backbones.control import Control
from feedface.checkpoints.bundle import read_index, save_component, write_index
from feedface.checkpoints.parts import SEAM
from feedface.checkpoints.storage import empty, fill, read_json, read_safetensors, write_json, write_state
from feedface.common.errors import UserError
from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.sampling import sample
from feedface.diffusion.state import expand, take
from feedface.inference.acceleration import Int8Linear, replace_linears
from feedface.inference.config_file import load_config
from feedface.methods.base import Identity, Method, method_class
from feedface.pipeline import FeedFacePipeline
from feedface.training.check import check_config
from feedface.training.data import build_data
from feedface.training.frozen_predictions import FrozenPredictions
from feedface.training.setup import build_models, make_accelerator
from feedface.training.trainer import train

BACKBONES = {"uvit": toy_uvit, "unet": toy_unet}


@dataclass(frozen=True)
class Row:
    """A method on a backbone. `control`: of its config; `parts`: what `fresh` takes besides.

    `identity`: what an identity has besides, of one person after the other. `changes_fresh`: why one that is not
    trained does change pictures of somebody. It may not where nobody is shown.
    """

    method: str
    backbone: str
    control: dict
    parts: dict = field(default_factory=dict)
    changes_fresh: str = ""
    name: str = ""
    identity: dict = field(default_factory=dict)

    def __str__(self) -> str:
        name = self.name or "-".join(str(value) for value in self.control.get("sites", ()))
        return f"{self.method}-{self.backbone}-{name}"


FEEDFACE = {"sites": (), "num_heads": 4, "mlp_ratio": 2.0, "control_input": "output"}
CLIP = {"clip_config": CLIP_CONFIG}
FACE = {"vectors": 4, "face_dim": 3, "recogniser": "toy", "template": "a"}
ADAFACE = {**FACE, "objective": {"kind": "reconstruction"}}
DENSEFACE = {"face_dim": 3, "recogniser": "toy", "subject_word": "z", "initial_word": "z", "delta": 1.0}
DENSEFACE |= {"token_delta": 1.0, "hint_channels": (4, 4, 8, 8)}
EVERYWHERE = {"adapters": "all", "reads_in_middle": True, "guided": "all"}
POSES = {"pose": ((20.0, 5.0, -3.0), (-15.0, 2.0, 8.0), (0.0, -9.0, 1.0))}
TEXT = "the person stands in the prompt, which has other words then"
FLASHFACE = {"sites": (), "reference_px": 32, "writer": "copy", "backbone": "all", "rank": 0}
SMALL = {**FLASHFACE, "writer": "backbone", "backbone": "frozen", "rank": 8}
COPY = "its reference net starts as the backbone's copy and is read at once: a gate would not fit the authors' weights"
ROWS = [
    Row("feedface", "uvit", {**FEEDFACE, "sites": ("in_blocks.0", "out_blocks.0")}, CLIP),
    Row("feedface", "uvit", {**FEEDFACE, "sites": ("mid_block",), "control_input": "input"}, CLIP),
    Row("feedface", "unet", FEEDFACE, CLIP),
    Row("feedface", "unet", {**FEEDFACE, "sites": ("mid_block.attentions.0",)}, CLIP),
    Row(
        "feedface",
        "unet",
        {**FEEDFACE, "sites": ("mid_block.attentions.0", "up_blocks.1.attentions.1")} | {"self_attention": False},
        CLIP,
    ),
    Row("adaface", "uvit", ADAFACE, changes_fresh=TEXT),
    Row("adaface", "unet", ADAFACE, changes_fresh=TEXT),
    Row("adaface", "unet", {**ADAFACE, "copies": 2, "average": "words"}, changes_fresh=TEXT, name="copies"),
    Row("flashface", "unet", FLASHFACE, changes_fresh=COPY, name="both"),
    Row("flashface", "unet", {**FLASHFACE, "sites": ("all",), "backbone": "attention"}, changes_fresh=COPY, name="all"),
    Row("flashface", "unet", {**FLASHFACE, "backbone": "frozen", "rank": 8}, changes_fresh=COPY, name="refnet"),
    Row("flashface", "unet", {**FLASHFACE, "reference_latent": "sample"}, changes_fresh=COPY, name="sample"),
    Row("flashface", "unet", SMALL, changes_fresh=COPY, name="small"),
    Row("flashface", "uvit", SMALL, changes_fresh=COPY, name="small"),
    Row("denseface", "unet", DENSEFACE, identity=POSES, name="decoder"),
    Row("denseface", "unet", {**DENSEFACE, **EVERYWHERE}, identity=POSES, name="all"),
    Row("denseface", "uvit", {**DENSEFACE, "pose": False}, name="decoder"),
]
PROMPTS = ["a z", "z on a b"]


@dataclass(frozen=True)
class Told:
    """In the place of a control, of a method that changes prompts: the texts [2,T,Dt], and perhaps a control, too."""

    text: Tensor
    control: Control | None = None
    rows: slice | None = None

    def first(self, count: int) -> "Told":
        return Told(self.text[:count], self.control and self.control.first(count))


class Setting:
    """A row made: backbone, a fresh method, and what a call takes. B = 2."""

    def __init__(self, row: Row):
        torch.manual_seed(0)
        self.row = row
        self.config = ConfigDict({"control": row.control})
        self.backbone: Backbone = BACKBONES[row.backbone]().eval()
        self.text_encoder, parts = toy_text_encoder(self.backbone.text_dim), row.parts
        if method_class(row.method).changes_prompt:
            parts = {**parts, "text": self.text_encoder}
        self.method: Method = method_class(row.method).fresh(self.config, self.backbone, **parts).eval()
        self.state = {name: torch.randn(2, *shape) for name, shape in self.backbone.state_shapes().items()}
        self.t = torch.tensor([17.5, 803.0])
        self.text = torch.randn(2, self.backbone.text_tokens or 5, self.backbone.text_dim)
        if self.method.changes_prompt:
            self.text = self.prompt()["text"]

    def trained(self) -> "Setting":
        """As after some training: all that is trained is somewhere else."""
        with torch.no_grad():
            for _, parameter in self.method.trained_parameters(self.backbone):
                parameter.add_(0.1 * torch.randn_like(parameter))
        return self

    def people(self, count: int = 2, references: int = 1) -> Identity:
        """Identities of different people."""
        spec = self.method.reference
        shape = (spec.size,) if spec.kind == "embedding" else (3, spec.size, spec.size)
        if spec.kind in ("latent", "posterior"):
            shape = (self.backbone.latent_channels, *[spec.size // 8] * 2)
            shape = (2, *shape) if spec.kind == "posterior" else shape
        pictures = torch.rand(count * references, *shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
        features = self.method.features(pictures)
        features = {name: value.unflatten(0, (count, -1)) for name, value in features.items()}
        identity = self.method.identity(features) | {k: torch.tensor(v[:count]) for k, v in self.row.identity.items()}
        return self.method.prompted(identity, {"text": self.text[:1]})

    def prompt(self, identity: Identity | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        """What the two rows' prompts are with these people."""
        if not self.method.changes_prompt:
            return {"text": self.text}
        return self.method.prompt(self.text_encoder, PROMPTS, identity, scale)

    def conditions(self, rows: slice = slice(None), text: Tensor | None = None):
        return self.backbone.conditions({"text": (self.text if text is None else text)[rows]})

    def predict(self, control=None, rows: slice = slice(None)) -> dict[str, Tensor]:
        state, t = take(self.state, rows), self.t[rows]
        if isinstance(control, Told):
            return self.backbone(state, t, self.conditions(rows, control.text), control.control)
        return self.backbone(state, t, self.conditions(rows), control)

    def bound(self, identity: Identity, scale: float = 1.0, rows: slice | None = None):
        control = self.method.bind(self.backbone, identity, scale, rows)
        if not self.method.changes_prompt or not scale:
            return control
        text = self.prompt(expand(identity, 2), scale)["text"]
        if rows is None:
            return Told(text, control)
        told = torch.stack([(text if i in range(2)[rows] else self.text)[i] for i in range(2)])
        return Told(told, control)


@pytest.fixture(params=ROWS, ids=str)
def setting(request) -> Setting:
    return Setting(request.param)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------ contracts

CONTRACTS: list[Callable] = []


def contract(test: Callable) -> Callable:
    CONTRACTS.append(test)
    return test


@contract
def test_a_fresh_one_is_the_backbone_to_the_bit(setting: Setting):
    plain = setting.predict()
    if setting.row.changes_fresh:
        people = setting.people()
        assert not equal(setting.predict(setting.bound(people)), plain)
        if setting.method.changes_prompt:
            assert equal(setting.prompt(None), {"text": setting.text_encoder.encode(PROMPTS)})
            return
        nobody = {**people, "weights": torch.zeros_like(people["weights"])}
        assert equal(setting.predict(setting.bound(nobody)), plain)
        return
    assert equal(setting.predict(setting.bound(setting.people())), plain)
    with torch.no_grad():
        assert equal(setting.predict(setting.bound(setting.people())), plain)
        assert not equal(setting.trained().predict(setting.bound(setting.people())), plain)


@contract
def test_only_what_is_trained_gets_gradients(setting: Setting):
    backbone, method = setting.trained().backbone, setting.method
    trained = dict(method.trained_parameters(backbone))
    assert trained
    backbone.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    out = setting.predict(setting.bound(setting.people()))
    sum(value.square().sum() for value in out.values()).backward()
    ids = {id(parameter) for parameter in trained.values()}
    with_gradient = {id(p) for net in (backbone, method) for p in net.parameters() if p.grad is not None}
    assert with_gradient == ids
    assert all(parameter.grad.any() for parameter in trained.values())


@contract
@torch.no_grad()
def test_checkpointed_it_has_the_same_gradients(setting: Setting):
    setting.trained()
    gradients = []
    for on in (False, True):
        setting.backbone.gradient_checkpointing = on
        setting.method.zero_grad()
        setting.backbone.zero_grad()  # a method may train it too
        with torch.enable_grad():
            setting.predict(setting.bound(setting.people()))["img"].square().sum().backward()
        found = setting.method.trained_parameters(setting.backbone)
        gradients.append({name: parameter.grad.clone() for name, parameter in found})
    close(*gradients)


@contract
@torch.no_grad()
def test_scale_zero_is_no_work_and_scale_matters(setting: Setting):
    people, plain = setting.trained().people(), setting.predict()
    assert setting.bound(people, scale=0) is None
    half, full = (setting.predict(setting.bound(people, scale=scale)) for scale in (0.5, 1.0))
    assert not equal(half, full)
    assert not equal(half, plain)


@contract
@torch.no_grad()
def test_half_of_the_rows_controlled_leaves_the_others_as_they_were_to_the_bit(setting: Setting):
    plain, people = setting.trained().predict(), setting.people()
    some = setting.predict(setting.bound(take(people, slice(0, 1)), rows=slice(0, 1)))
    every = setting.predict(setting.bound(people))
    assert equal(take(some, slice(1, 2)), take(plain, slice(1, 2)))
    assert not equal(take(some, slice(0, 1)), take(plain, slice(0, 1)))
    close(take(some, slice(0, 1)), take(every, slice(0, 1)))


@contract
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(setting: Setting, tmp_path):
    method = setting.trained().method
    write_json(tmp_path / "config.json", {"kind": method.kind, **method.config})
    write_state(tmp_path / "model.safetensors", method.state_dict(), None)
    config = read_json(tmp_path / "config.json")
    again = empty(method_class(config.pop("kind")), config, tmp_path)
    again = fill(again, read_safetensors(tmp_path / "model.safetensors", "cpu", None), tmp_path).eval()
    assert again.config == method.config
    assert again.reference == method.reference
    expected = setting.predict(setting.bound(setting.people()))
    setting.method = again
    assert equal(setting.predict(setting.bound(setting.people())), expected)


@contract
@torch.no_grad()
def test_the_backbone_is_made_again_from_its_config(setting: Setting, tmp_path):
    write_json(tmp_path / "config.json", setting.backbone.config)
    again = backbone_class(setting.row.backbone).from_config(read_json(tmp_path / "config.json"))
    again.load_state_dict(setting.backbone.state_dict())
    expected, setting.backbone = setting.predict(), again.eval()
    assert equal(setting.predict(), expected)


@contract
@torch.no_grad()
def test_two_people_in_a_batch_are_as_one_by_one(setting: Setting):
    people = setting.trained().people()
    together = setting.predict(setting.bound(people))
    for row in (slice(0, 1), slice(1, 2)):
        close(take(together, row), setting.predict(setting.bound(take(people, row)), row))
    # one person for all rows
    one = take(people, slice(0, 1))
    close(setting.predict(setting.bound(one)), setting.predict(setting.bound(expand(one, 2))))
    assert not equal(take(together, slice(1, 2)), take(setting.predict(setting.bound(one)), slice(1, 2)))


@contract
@torch.no_grad()
def test_the_first_rows_alone_are_the_same(setting: Setting):
    people = setting.trained().people()
    control = setting.bound(people).first(1)
    assert control.rows is None
    close(setting.predict(control, slice(0, 1)), setting.predict(setting.bound(take(people, slice(0, 1))), slice(0, 1)))


@contract
@torch.no_grad()
def test_several_references_are_one_person(setting: Setting):
    people = setting.trained().people(2, references=3)
    out = setting.predict(setting.bound(people))
    assert all(value.isfinite().all() for value in out.values())
    assert not equal(out, setting.predict(setting.bound(setting.people())))


@contract
@torch.no_grad()
def test_guidance_is_two_passes(setting: Setting):
    people, backbone, method = setting.trained().people(), setting.backbone, setting.method
    noise, other = torch.randn(2, *setting.prompt(people)["text"].shape)
    for mode in backbone.uncond_modes:
        options = {"empty_prompt": {"text": other}, "noise": noise, "uncond_mode": mode}
        shown = {"method": method, "identity": people, "scale": 0.7}
        prompt = setting.prompt(people, 0.7)
        out = GuidedModel(backbone, prompt, guidance=3, **options, **shown)(setting.state, 500.0)
        times = torch.full((2,), 500.0)
        halves = backbone.guided_prompt(prompt, mode, {"text": other}, noise)
        nobody = method.unconditional(people, mode)
        controls = [method.bind(backbone, who, 0.7) if who is not None else None for who in (people, nobody)]
        c, u = (
            backbone(setting.state, times, backbone.conditions(take(halves, rows)), control)
            for rows, control in zip((slice(0, 2), slice(2, 4)), controls, strict=True)
        )
        close(out, {name: u[name] + 3 * (c[name] - u[name]) for name in c})


@contract
@torch.no_grad()
def test_a_sample_depends_on_its_seed_and_person_alone(setting: Setting):
    people = setting.trained().people()
    options = {"steps": 3, "guidance": 2.0, "method": setting.method, "latent_size": (8, 12)}
    prompts = {"empty_prompt": {"text": setting.text[:1]}, "guidance_interval": (300, 1000)}
    prompt = setting.prompt(people)
    together = sample(setting.backbone, prompt, [3, 4], identity=people, **options, **prompts)
    assert together["img"].shape[-2:] == (8, 12)
    alone = sample(
        setting.backbone, take(prompt, slice(1, 2)), [4], identity=take(people, slice(1, 2)), **options, **prompts
    )
    for name, value in alone.items():
        torch.testing.assert_close(together[name][1:], value, atol=1e-3, rtol=1e-3)
    nobody = sample(setting.backbone, {"text": setting.text[1:]}, [4], **options, **prompts)
    assert not torch.allclose(nobody["img"], alone["img"], atol=1e-3)


@contract
@torch.no_grad()
def test_a_prompt_knows_the_person_only_where_the_method_says_so(setting: Setting):
    class Encoder:
        def encode(self, texts):
            return torch.stack([torch.full((5, 8), float(len(text))) for text in texts])

    method, people = setting.trained().method, setting.people()
    if not method.changes_prompt:
        shown = method.prompt(Encoder(), ["a", "bcd"], people, 0.5)
        assert equal(shown, method.prompt(Encoder(), ["a", "bcd"]))
        assert shown["text"].shape == (2, 5, 8)
        return
    plain, shown = setting.prompt(), setting.prompt(people)
    assert equal(plain, {"text": setting.text_encoder.encode(PROMPTS)})
    assert not torch.equal(shown["text"][0], setting.prompt(take(people, slice(1, 2)))["text"][0])
    close(take(shown, slice(0, 1)), take(setting.prompt(expand(take(people, slice(0, 1)), 2)), slice(0, 1)))


@contract
@torch.no_grad()
def test_in_8_bits_it_is_nearly_the_same(setting: Setting):
    people, plain = setting.trained().people(), setting.predict()
    full = setting.predict(setting.bound(people))["img"]
    blocks = [block for _, block in setting.backbone.blocks()]
    for root in (*blocks, *(part for part in setting.method.trained(setting.backbone).values())):
        replace_linears(root, Int8Linear)
    rounded = setting.predict(setting.bound(people))["img"]
    assert not torch.equal(rounded, full)
    assert (rounded - full).norm() < 0.2 * (full - plain["img"]).norm() + 0.05 * full.norm()


class Run:
    """A row trained: on a toy bundle of its backbone, from records. `config(**changes)` is the training's."""

    def __init__(self, row: Row, folder: Path):
        self.row, self.folder = row, folder
        base = make_toy_bundle(folder / "base")
        if "recogniser" in row.control:
            write_pack(folder / "faces", row.control["recogniser"], redness)
        shared = {part: path.absolute() for part, path in read_index(base).components.items() if part not in SEAM}
        torch.manual_seed(0)
        save_component("backbone", BACKBONES[row.backbone](), folder / "model" / "backbone")
        components = {**shared, "backbone": "backbone"}
        if "recogniser" in row.control:
            components["faces"] = (folder / "faces").absolute()
        if method_class(row.method).changes_prompt:
            components["text_encoder"] = "text_encoder"
            save_component("text_encoder", toy_text_encoder(), folder / "model" / "text_encoder")
        write_index(folder / "model", name="toy", image_size=64, components=components, defaults={"steps": 2})
        self.records = make_records(folder / "records", dense=True)

    def config(self, **changes) -> ConfigDict:
        config = mini_face.get_config()
        config.model, config.method = str(self.folder / "model"), self.row.method
        config.face_encoder = str(self.folder / "base") if method_class(self.row.method).uses_clip else ""
        config.control = ConfigDict(self.row.control)
        config.data.records, config.cache.dir = (str(self.records),), str(self.folder / "features")
        config.train.update(steps=6, batch_size=2, lr=1e-2, warmup_steps=2, schedule="constant")
        config.log.update(trackers=(), samples_every=0)
        config.update_from_flattened_dict(changes)
        return config.lock()

    def train(self, name: str, **changes) -> dict:
        """What training saved at its end."""
        self.reset()
        assert train(self.config(**changes), self.folder / name) == 0
        return torch.load(self.folder / name / "checkpoints/last/training/state.pt", weights_only=True)

    @staticmethod
    def reset() -> None:
        for state in (AcceleratorState, GradientState, PartialState):  # kept for the whole process
            state._reset_state()


@contract
def test_three_and_three_steps_are_six_and_draw_the_same_in_little_memory(setting: Setting, tmp_path):
    run = Run(setting.row, tmp_path)
    whole = run.train("whole")
    run.train("parts", **{"train.steps": 3})
    parts = run.train("parts")
    assert whole["weights"].keys() == dict(setting.method.trained_parameters(setting.backbone)).keys()
    assert equal(whole["weights"], parts["weights"])
    assert all(torch.equal(a, b) for a, b in zip(whole["ema"], parts["ema"], strict=True))

    pictures = []
    for faces, low_memory in ((True, False), (True, True), (False, False)):
        model = tmp_path / "whole/checkpoints/last"
        pipe = FeedFacePipeline.from_pretrained(model, device="cpu", low_memory=low_memory)
        pipe.set_faces([Image.open(tmp_path / "records/images/0_0.png")] if faces else [])
        pictures.append(pipe.generate("a man", seed=1, progress=False)[0].tobytes())
    assert pictures[0] == pictures[1] != pictures[2]


@contract
def test_the_cache_gives_the_same_loss(setting: Setting, tmp_path):
    run, losses = Run(setting.row, tmp_path), []
    for cached in (False, True):
        run.reset()
        config = run.config(**({} if cached else {"cache.dir": "", "cache.enabled": False}))
        accelerator = make_accelerator(config, tmp_path)
        models = build_models(config, accelerator.device, "no")
        data = build_data(config, models, accelerator, tmp_path)
        with torch.no_grad():  # as after some training: a fresh one does not look at its references
            generator = torch.Generator().manual_seed(3)
            for parameter in models.trained.trained().values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        batch = data.dataset.__getitems__([(sample, 2) for sample in range(6)])
        encoded = batch.content if cached else data.encoders(batch.content)
        objective = models.trained.method.objective(config, data.zero_reference, data.empty_text)
        losses.append(objective(models.trained, batch.draws, encoded).loss)
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-4)


@contract
def test_kept_predictions_give_the_same_loss_or_there_are_none(setting: Setting, tmp_path):
    run = Run(setting.row, tmp_path)
    run.reset()
    config = run.config(**{"cache.draws_per_picture": 2})
    if not setting.method.asks_frozen(config):
        with pytest.raises(UserError, match=r"draws_per_picture: .* has no frozen prediction to keep"):
            check_config(config)
        return
    accelerator = make_accelerator(config, tmp_path)
    models = build_models(config, accelerator.device, "no")
    data = build_data(config, models, accelerator, tmp_path)
    count, trained = len(data.dataset.refs), models.trained
    frozen = FrozenPredictions(tmp_path, data.dataset.settings, count, trained, data.empty_text)
    objective = trained.method.objective(config, data.zero_reference, data.empty_text)
    batch = data.dataset.__getitems__([(sample, 2) for sample in range(6)])
    losses = [objective(trained, batch.draws, batch.content).loss]
    for _ in range(2):  # made, and read
        content = replace(batch.content, frozen=frozen(batch.draws, batch.content))
        losses.append(objective(trained, batch.draws, content).loss)
    assert losses[1] == losses[2]
    torch.testing.assert_close(*losses[:2], atol=0, rtol=1e-4)
    models.trained.forward = None  # not asked again
    frozen(batch.draws, batch.content)


FIRST_ROWS = [next(row for row in ROWS if row.backbone == name) for name in BACKBONES]


@pytest.mark.parametrize("row", FIRST_ROWS, ids=str)  # seconds each: one row for each backbone
@torch.no_grad()
def test_compiled_new_people_compile_nothing_anew(row: Row):
    setting = Setting(row)
    people = [take(setting.trained().people(3), slice(i, i + 1)) for i in range(3)]
    controls = [setting.bound(one, rows=slice(0, 1)) for one in people]
    conditions = setting.conditions()
    expected = [setting.backbone(setting.state, setting.t, conditions, control) for control in controls]
    torch._dynamo.reset()
    compiled = torch.compile(setting.backbone, backend="aot_eager")
    close(compiled(setting.state, setting.t, conditions, controls[0]), expected[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for control, plain in zip(controls[1:], expected[1:], strict=True):
            close(compiled(setting.state, setting.t, conditions, control), plain)


@contract
def test_another_backbone_is_refused(setting: Setting):
    setting.method.check(setting.backbone, "here")
    if not any(site in setting.backbone.sites for site in setting.method.config.get("sites", ())):
        return
    (other,) = (make for name, make in BACKBONES.items() if name != setting.row.backbone)
    with pytest.raises(UserError, match=r"^model/x: this \w+ belongs to another backbone: the \w+ has no site"):
        setting.method.check(other(), "model/x")


# ---------------------------------------------------------------------------------------------------------- three files

TOY_METHOD = '''
    """Adds a person's mean colour, projected, to the tokens of blocks: all that a method must have, and no more."""

    import torch
    from torch import nn

    from feedface.backbones.control import Control
    from feedface.methods.base import Method, ReferenceSpec


    class ToyControl(Control):
        def __init__(self, changes, scale, rows):
            self.changes, self.scale, self.rows, self.sites = changes, scale, rows, tuple(changes)

        def block(self, site, x, out):
            return (self.scale * self.changes[site.name]).expand_as(out)

        def first(self, count):
            return ToyControl({name: change[:count] for name, change in self.changes.items()}, self.scale, None)


    class Toy(Method):
        kind, reference = "toy_method", ReferenceSpec("crop", 8)

        def __init__(self, widths: list[list[str | int]]):
            super().__init__()
            self.config = {"widths": widths}
            self.linears = nn.ParameterDict({name.replace(".", "/"): torch.zeros(width, 3) for name, width in widths})

        @classmethod
        def fresh(cls, config, backbone):
            blocks = [(name, site.width) for name, site in backbone.sites.items() if site.kind == "block"]
            return cls([list(pair) for pair in blocks][: config.control.count])

        def features(self, references):
            return {"colour": references.mean(dim=(2, 3))}

        def identity(self, features, pool="concat"):
            return {"colour": features["colour"].mean(dim=1)}

        def bind(self, backbone, identity, scale=1.0, rows=None):
            names = [name for name, _ in self.config["widths"]]
            changes = {name: identity["colour"][:, None] @ self.linears[name.replace(".", "/")].T for name in names}
            return None if scale == 0 else ToyControl(changes, scale, rows)

        def trained(self, backbone):
            return {"linears": self.linears}
'''
TOY_CONFIG = """
    from configs import mini_face
    from ml_collections import ConfigDict


    def get_config() -> ConfigDict:
        config = mini_face.get_config()
        config.method, config.face_encoder = "toy_method", ""
        config.control = ConfigDict({"count": 2})
        return config
"""
TOY_ROW = 'Row("toy_method", backbone, {"count": 2}),\n'


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_new_method_is_three_files(backbone: str, tmp_path, monkeypatch):
    files = {"methods/toy_method.py": TOY_METHOD, "configs/toy.py": TOY_CONFIG, "tests/test_methods.py": TOY_ROW}
    for name, text in files.items():
        files[name] = textwrap.dedent(text).lstrip("\n")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(files[name])
        # what a change that adds the method consists of: `pytest -rP` shows it
        print("\n".join(difflib.unified_diff([], files[name].splitlines(), "/dev/null", name, lineterm="")))
    monkeypatch.setattr(feedface.methods, "__path__", [*feedface.methods.__path__, str(tmp_path / "methods")])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    check_config(load_config(tmp_path / "configs/toy.py"))
    (row,) = eval(f"[{TOY_ROW}]", {"Row": Row, "backbone": backbone})
    assert row.control == load_config(tmp_path / "configs/toy.py").control.to_dict()
    try:
        for index, test in enumerate(CONTRACTS):
            folder = tmp_path / str(index)
            folder.mkdir()
            test(Setting(row), **({"tmp_path": folder} if "tmp_path" in inspect.signature(test).parameters else {}))
    finally:
        sys.modules.pop("feedface.methods.toy_method", None)
    tests = [value for name, value in globals().items() if name.startswith("test_")]
    assert [test for test in tests if "setting" in inspect.signature(test).parameters] == CONTRACTS


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"'x' is no method of this version; known are .*feedface"):
        method_class("x")
    for kind in ("base", "os", "../os"):
        with pytest.raises(UserError, match="known are unet, uvit"):
            backbone_class(kind)
