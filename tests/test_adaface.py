"""AdaFace: the authors' arrays, their files without their code, prompts with a person in them, distillation."""

import copy
import gzip
import io
import json
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from configs import adaface, mini_adaface, mini_arc2face
from ml_collections import ConfigDict
from tests import golden, golden_adaface
from tests.golden_check import compare, read
from tests.test_methods import Row, Run
from tests.toy import toy_text_encoder, toy_unet
from torch import nn

from feedface.checkpoints.adaface import GENERATORS, KEPT, MIX, RESET, assembled, load_adaface, read_generators
from feedface.checkpoints.arc2face import TABLE, read_teacher, read_teacher_network
from feedface.checkpoints.bundle import load_bundle
from feedface.checkpoints.clip_tokenizer import clip_tokenizer
from feedface.checkpoints.extend import extend
from feedface.common.errors import UserError
from feedface.common.person_words import named
from feedface.diffusion import text_objective
from feedface.diffusion.text_objective import beside
from feedface.methods.adaface import AdaFace, ObjectiveSettings, Settings
from feedface.methods.arc2face import Arc2Face
from feedface.pipeline import FeedFacePipeline
from feedface.text_tower import extended
from feedface.training.check import check_config
from feedface.training.data import build_data
from feedface.training.setup import build_models, make_accelerator

FACE = {"vectors": 4, "face_dim": 3, "recogniser": "toy", "template": "a"}


def stored(name):
    return json.loads(gzip.decompress((golden.FOLDER / f"{name}.json.gz").read_bytes()))


def test_golden_arrays():
    config, arrays = read(golden.FOLDER / "adaface_A.npz")
    shapes = stored("adaface_A.shapes")
    lines, good = compare(golden_adaface.computed(config, arrays, shapes), arrays, golden_adaface.REASONS)
    assert good, "\n".join(lines)
    assert sum("not computed" not in line for line in lines) > 100


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(0)
    return toy_text_encoder()


def toy(text, kind=AdaFace, **control):
    torch.manual_seed(0)
    return kind.fresh(ConfigDict({"control": {**FACE, **control}}), toy_unet(), text=text).eval()


@pytest.fixture
def method(text):
    return toy(text)


@pytest.fixture
def person(method):
    return method.identity(method.features(torch.tensor([[[1.0, 2.0, 3.0]]])))


# ------------------------------------------------------------------------------------------------------------ a person


@torch.no_grad()
def test_photos_are_averaged_in_any_order(text):
    faces = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(1))
    found = {}
    for average in ("embeddings", "states", "words"):
        method = toy(text, average=average)
        words = [method.identity(method.features(x))["words"] for x in (faces, faces.flip(1), faces[:, :1])]
        again = method.identity(method.features(faces[:, :1].repeat(1, 4, 1)))["words"]
        torch.testing.assert_close(words[0], words[1], atol=1e-5, rtol=0)
        torch.testing.assert_close(words[2], again, atol=1e-5, rtol=0)
        torch.testing.assert_close(words[2], method.identity(method.features(5 * faces), "first")["words"])
        found[average] = words[0]
    assert not torch.allclose(found["embeddings"], found["states"], atol=1e-4)
    assert not torch.allclose(found["words"], found["states"], atol=1e-4)


@torch.no_grad()
def test_more_keys_begin_as_the_same_function_and_causal(method):
    states = torch.randn(2, 4, 16)
    plain = method.words(states)
    for times in ((2,), (4,), (2, 2)):
        wider = toy(toy_text_encoder(), copies=1)
        wider.load_state_dict(method.state_dict())
        for m in times:
            wider.word_tower = extended(wider.word_tower, m, noise=0)
        torch.testing.assert_close(wider.words(states), plain, atol=1e-5, rtol=0)
    assert not torch.allclose(extended(method.word_tower, 2)(states)[-1], method.word_tower(states)[-1])
    later = states.clone()
    later[:, 2:] = torch.randn(2, 2, 16)
    assert torch.equal(method.words(later)[:, :2], plain[:, :2])
    assert not torch.allclose(method.words(later)[:, 2:], plain[:, 2:])


@torch.no_grad()
def test_strength_leads_from_the_pads_to_the_words(method, person, text):
    half = method.prompt(text, ["a z"], person, 0.5)["text"]
    between = {**person, "words": (person["words"] + person["pads"]) / 2}
    torch.testing.assert_close(half, method.prompt(text, ["a z"], between)["text"])
    assert torch.equal(person["pads"][0], method.pads[method.persons])


# ------------------------------------------------------------------------------------------------------------- prompts


def shown(method, text, prompt: str) -> str:
    """A prompt as placed, with @ for each vector."""
    first = text.clip.get_input_embeddings().num_embeddings
    ids = [i for i in method.placed(text, prompt).tolist() if i not in text.tokenizer.all_special_ids]
    words = [("@" if i >= first else text.tokenizer.convert_ids_to_tokens(i)) for i in ids]
    return "".join(words).replace("</w>", " ").strip()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a z", "a @@@@"),
        ("z's hat", "@@@@'s hat"),
        ("a cat", "a cat @@@@"),
        ("zoo a-z", "zoo a -z @@@@"),
        ("z z", "@@@@@@@@"),
        ("abcdefgh z klm", "abcdefgh@@@@kl"),
        ("abcdefghijklmnop z", "abcdefghij@@@@"),
    ],
)
def test_a_person_stands_at_their_word_and_is_never_cut(method, text, prompt, expected):
    assert shown(method, text, prompt).replace(" ", "") == expected.replace(" ", "")
    assert len(method.placed(text, prompt)) == text.num_tokens


def test_where_the_authors_put_a_person(text):
    """As their releases rewrite prompts; they also cut the word out of "z-index", which is none of ours."""
    for placement, form in (("prepend", "@@@@{}"), ("append", "{}@@@@")):
        method = toy(text, placement=placement)
        cases = {"a z, b": " b", "an z,on": "on", "the z in": "in", "A z, b": "a b", "z": "", "b": "b", "z-in": "z-in"}
        for prompt, rest in cases.items():
            assert shown(method, text, prompt).replace(" ", "") == form.format(rest).replace(" ", "")


def test_what_is_said_of_prompts(method, text):
    assert method.notice(text, "a z") is None
    assert method.notice(text, "a cat") == "the prompt has no word 'z' where the person stands, who is put after it"
    assert "has 20 tokens with the person's 4; the text encoder reads 16" in method.notice(text, "abcdefghijklmn z")
    with pytest.raises(UserError, match=r"^'z z z z': has 'z' 4 times, 4 tokens each; .* has room for 14"):
        method.placed(text, "z z z z")
    other = toy(text, subject_word="<anna>")
    assert shown(other, text, "a <anna>") == "a @@@@"
    assert other.notice(text, "a z").startswith("the prompt has no word '<anna>'")


@torch.no_grad()
def test_words_beside_the_person_may_have_weights(method, person, text):
    text = copy.deepcopy(text)
    text.prefix = None
    plain, more = (method.prompt(text, [prompt], person)["text"][0] for prompt in ("a z b", "a z (b:1.5)"))
    ratio = more / plain
    place = 2 + method.vectors  # behind the beginning, "a" and the person
    torch.testing.assert_close(ratio[place], 1.5 * ratio[0])
    others = [token for token in range(len(plain)) if token != place]
    torch.testing.assert_close(ratio[others], ratio[0].expand(len(others), -1))
    assert torch.equal(method.placed(text, "a z (b:1.5)"), method.placed(text, "a z b"))
    assert method.notice(text, "(a:1.2) z (b:0.5)") is None
    with pytest.raises(UserError, match=r"'z' stands in weighted brackets; .* --face_scale"):
        method.prompt(text, ["a (z b:1.5)"], person)


def test_gradients_reach_the_words_alone_and_a_prompt_without_vectors_is_the_same(method, person, text):
    ids = text.tokenize(["a b", "c"])
    words = person["words"].detach().expand(2, -1, -1).clone().requires_grad_(True)
    torch.testing.assert_close(text.encode_tokens(ids, words), text.encode(["a b", "c"]), atol=1e-6, rtol=0)
    method.prompt(text, ["a z", "b"], {"words": words, "pads": words})["text"].sum().backward()
    assert words.grad.abs().sum(dim=-1).gt(0).all()
    assert all(parameter.grad is None for parameter in text.parameters())


# ---------------------------------------------------------------------------------------------------- the authors' file


def module(name: str, bases=(nn.Module,)):
    """A class that only the file's writer has."""
    return type(name.rpartition(".")[2], bases, {"__module__": name.rpartition(".")[0]})


@pytest.fixture
def pickled(tmp_path, monkeypatch):
    """Write an `embeddings_gs` file with classes that are gone when it is read."""

    def write(generator: dict[str, torch.Tensor], extra=None) -> Path:
        names = ["ldm", "ldm.modules", "ldm.modules.subj_basis_generator"]
        for name in names:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        kind = module("ldm.modules.subj_basis_generator.SubjBasisGenerator")
        sys.modules[names[-1]].SubjBasisGenerator = kind
        person = kind()
        for key, value in generator.items():
            owner = person
            *path, last = key.split(".")
            for part in path:
                if part not in owner._modules:
                    owner._modules[part] = nn.Module()
                owner = owner._modules[part]
            owner.register_parameter(last, nn.Parameter(value))
        person.tokenizer = extra
        content = {GENERATORS: nn.ModuleDict({"z": person}), "token2num_vectors": {"z": 4}}
        file = tmp_path / "embeddings_gs-100.pt"
        torch.save(content, file)
        for name in names:
            monkeypatch.delitem(sys.modules, name)
        return file

    return write


def generator_of(text, copies: int = 1) -> dict[str, torch.Tensor]:
    state = {f"prompt2token_proj.text_model.{key}": value.clone() for key, value in text.clip.state_dict().items()}
    for key in [key for key in state if "k_proj" in key or "v_proj" in key]:
        state[key] = state[key].repeat(copies, *[1] * (state[key].dim() - 1))
    return {**state, MIX: torch.tensor([[3.0], [1.0], [1.0]]), "obj_proj_in.0.weight": torch.ones(2, 2)}


class Attack:
    """What a hostile file asks for: to make a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"import pathlib; pathlib.Path({str(self.mark)!r}).touch()",)


def test_a_pickle_of_modules_gives_its_tensors_and_runs_nothing(pickled, text, method):
    generator = generator_of(text, copies=2)
    states = read_generators(pickled(generator, clip_tokenizer))
    assert states["z"].keys() == generator.keys()
    assert all(torch.equal(states["z"][key], value) for key, value in generator.items())
    ids = [0] * text.num_tokens
    reader = toy(text, Arc2Face)
    for kind, weights in ((RESET, [1.0, 2.0, 4.0]), (KEPT, [3.0, 1.0, 1.0])):
        made = assembled(reader, states["z"], ids, kind, heads=2)
        assert made.word_tower.copies == [2, 2, 2]
        assert made.mix.weights.flatten().tolist() == weights
    with pytest.raises(UserError, match="suffix"):
        assembled(reader, {**states["z"], "static_img_suffix_embs": torch.ones(1)}, ids, heads=2)
    broken = {key: value for key, value in states["z"].items() if "layers.1.mlp.fc1.weight" not in key}
    with pytest.raises(UserError, match=r"^here: has no encoder\.layers\.1\.mlp\.fc1\.weight"):
        assembled(reader, broken, ids, heads=2, source="here")


def test_a_hostile_pickle_runs_nothing(pickled, text, tmp_path):
    mark = tmp_path / "attacked"
    file = pickled(generator_of(text), Attack(mark))
    assert b"exec" in file.read_bytes()
    assert set(read_generators(file)) == {"z"}  # what it names stands for nothing
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Attack(mark)))
    with pytest.raises(UserError):
        read_generators(tmp_path / "plain.pt")
    assert not mark.exists()


def test_files_of_something_else(tmp_path, text):
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: holds no string_to_subj_basis_generator_dict"):
        read_generators(tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"no such file"):
        load_adaface(tmp_path / "none.pt", tmp_path)
    with pytest.raises(UserError, match=r"has no model\.safetensors or pytorch_model\.bin of Arc2Face"):
        read_teacher(tmp_path)
    buffer = io.BytesIO()
    torch.save(text.clip.state_dict(), buffer)
    (tmp_path / "cut.pt").write_bytes(buffer.getvalue()[:-300])
    with pytest.raises(UserError, match=r"cut\.pt"):
        read_generators(tmp_path / "cut.pt")


# ------------------------------------------------------------------------------------------------------- distillation


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A toy model, and its teacher, trained for some steps."""
    folder = tmp_path_factory.mktemp("teacher")
    run = Run(Row("arc2face", "unet", {**FACE, "backbone": "frozen"}), folder)
    run.train("arc2face", **{"train.steps": 3, "cache.dir": str(folder / "another")})
    return run, folder / "arc2face/checkpoints/last"


def distilling(run: Run, teacher: Path, **changes) -> Run:
    control = {**FACE, "teacher": str(teacher), "objective": {"prompts": ("a {}",), **changes}}
    run.row = Row("adaface", "unet", control)
    return run


def distillation_loss(run: Run, weights: dict[str, torch.Tensor] | None = None) -> float:
    """Of random people that training has not seen."""
    run.reset()
    config = run.config(**{"train.batch_size": 8})
    models = build_models(config, torch.device("cpu"), "no")
    if weights is not None:
        with torch.no_grad():
            for name, parameter in models.trained.trained().items():
                parameter.copy_(weights[name])
    data = build_data(config, models, make_accelerator(config, run.folder), run.folder)
    objective = models.trained.method.objective(config, data.zero_reference, data.empty_text)
    losses = []
    for first in range(10_000, 10_160, 8):
        batch = data.dataset.__getitems__([(sample, 1) for sample in range(first, first + 8)])
        with torch.no_grad():
            losses.append(float(objective(models.trained, batch.draws, batch.content).loss))
    return sum(losses) / len(losses)


@pytest.mark.slow
def test_distilled_the_student_comes_nearer_and_goes_on_exactly(teacher):
    run, path = teacher
    distilling(run, path, random_faces=1.0, perturbed=0.0, word_noise=0.0, most_steps=1)
    options = {"train.lr": 3e-3, "train.batch_size": 8}
    state = run.train("alone", **options, **{"train.steps": 60})
    before, after = distillation_loss(run), distillation_loss(run, state["weights"])
    assert after < 0.7 * before
    run.train("parts", **options, **{"train.steps": 30})
    again = run.train("parts", **options, **{"train.steps": 60})
    assert all(torch.equal(state["weights"][key], value) for key, value in again["weights"].items())
    method = FeedFacePipeline.from_pretrained(run.folder / "alone/checkpoints/last", device="cpu").bundle.method
    assert isinstance(method, AdaFace)
    reader = read_teacher(path).reader.state_dict()
    for key, value in method.reader.state_dict().items():
        torch.testing.assert_close(value, reader[key], atol=1e-3, rtol=1e-3)  # frozen; stored in half precision


def test_pictures_may_come_with_their_captions(teacher, monkeypatch):
    run, _ = teacher
    told, prompt = [], AdaFace.prompt

    def heard(method, text_encoder, prompts, *rest, **options):
        told.extend(prompts)
        return prompt(method, text_encoder, prompts, *rest, **options)

    monkeypatch.setattr(AdaFace, "prompt", heard)
    run.row = Row("adaface", "unet", {**FACE, "objective": {"kind": "reconstruction", "captions": True}})
    run.train("captioned", **{"train.steps": 1})
    captions = [json.loads(line)["caption"] for line in run.records.read_text().splitlines()]
    assert told and set(told) <= {named(caption, "z") for caption in captions}


@pytest.mark.parametrize("share", [0.0, 0.99])
def test_a_teacher_may_keep_captions(teacher, monkeypatch, share):
    run, _ = teacher
    seen = []
    monkeypatch.setattr(text_objective, "beside", lambda text, identity: seen.append(text) or beside(text, identity))
    run.row = Row("arc2face", "unet", {**FACE, "captions": share})
    run.train(f"captions_{share}", **{"train.steps": 2, "cache.dir": str(run.folder / "another")})
    assert bool(seen) == bool(share)


def test_all_of_distillation_at_once(teacher):
    run, _ = teacher
    run.row = Row("arc2face", "unet", {**FACE, "backbone": "all"})
    run.train("whole", **{"train.steps": 2, "cache.dir": str(run.folder / "another")})
    path = run.folder / "whole/checkpoints/last"  # a backbone of its own
    own, base = (load_bundle(at, components=["backbone"]).backbone for at in (path, run.folder / "model"))
    assert not torch.equal(own.unet.conv_in.weight, base.unet.conv_in.weight)
    network, _ = read_teacher_network(str(path), torch.device("cpu"))
    assert torch.equal(network.unet.conv_in.weight, own.unet.conv_in.weight)
    for changes in (
        {"random_faces": 0.0, "perturbed": 1.0, "most_steps": 7},
        {"original_bugs": True, "perturbed": 0.0},
    ):
        distilling(run, path, **changes)
        run.train(f"all-{len(changes)}", **{"train.steps": 6, "train.batch_size": 4})


def test_distillation_without_or_with_a_wrong_teacher_is_refused(teacher):
    run, path = teacher
    with pytest.raises(UserError, match=r"^config\.control\.teacher: is empty"):
        distilling(run, "").train("none")
    with pytest.raises(UserError, match=r"^config\.control\.teacher: .*has no model\.safetensors"):
        distilling(run, run.folder).train("none")
    distilling(run, path).row.control["vectors"] = 3
    with pytest.raises(UserError, match=r"^config\.control: the teacher has vectors 4, model and config 3"):
        run.train("none")


# ---------------------------------------------------------------------------------------------------------- a pipeline


def test_the_subject_word_and_notices_of_a_pipeline(teacher):
    run, path = teacher
    run.row = Row("adaface", "unet", {**FACE, "objective": {"kind": "reconstruction"}})
    run.train("words", **{"train.steps": 1})
    model, photo = run.folder / "words/checkpoints/last", run.folder / "records/images/0_0.png"
    pictures = []
    for word, prompt in ((None, "a z b"), ("you", "a you b"), ("you", "a z b")):
        pipe = FeedFacePipeline.from_pretrained(model, device="cpu", subject_word=word)
        pipe.set_faces([photo])
        if word != "you" or "you" in prompt:
            assert pipe.prompt_notice(prompt, shown=True) is None
            pictures.append(pipe.generate(prompt, seed=1, progress=False)[0].tobytes())
        else:
            with pytest.warns(UserWarning, match="has no word 'you' where the person stands"):
                pictures.append(pipe.generate(prompt, seed=1, progress=False)[0].tobytes())
        assert pipe.changes.as_json() == ({} if word is None else {"subject_word": "you"})
    assert pictures[0] == pictures[1] != pictures[2]
    with pytest.raises(UserError, match=r"--subject_word 'a b': give one word"):
        FeedFacePipeline.from_pretrained(model, subject_word="a b")
    with pytest.raises(UserError, match=r"--subject_word: .* this model has the method arc2face"):
        FeedFacePipeline.from_pretrained(path, device="cpu", subject_word="you")
    two = FeedFacePipeline.from_pretrained(path, device="cpu")
    assert "the prompt is not read" in two.prompt_notice("a", shown=True)
    two.set_faces([photo])
    guided, plain = (two.generate("a", seed=1, guidance=g, progress=False)[0].tobytes() for g in (4, 1))
    assert guided != plain  # though the empty prompt has another number of tokens


@torch.no_grad()
def test_guidance_between_texts_of_different_lengths():
    backbone, texts = toy_unet(), (torch.randn(1, 4, 8), torch.randn(1, 6, 8))
    both = backbone.guided_prompt({"text": texts[0]}, "empty_token", {"text": texts[1]}, None)
    assert both["text"].shape == (2, 12, 8)
    state, t = {"img": torch.randn(1, *backbone.state_shapes()["img"])}, torch.tensor([500])
    for row, text in enumerate(texts):
        given, alone = (
            backbone(state, t, backbone.conditions({"text": x}))["img"] for x in (both["text"][[row]], text)
        )
        torch.testing.assert_close(given, alone, atol=1e-5, rtol=1e-5)


def test_extended_it_is_nearly_the_same_and_training_goes_on(teacher, capsys):
    run, path = teacher
    run.row = Row("adaface", "unet", {**FACE, "objective": {"kind": "reconstruction"}})
    run.train("short", **{"train.steps": 1})
    source, target = run.folder / "short/checkpoints/last", run.folder / "wide"
    extend(source, target, 2)
    face = torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(0))
    before, after = (load_bundle(folder, components=["method"]).method for folder in (source, target))
    assert after.config == {**before.config, "copies": [2, 2, 2]}
    words = [method.identity(method.features(face))["words"] for method in (before, after)]
    assert 0 < (words[0] - words[1]).abs().max() < 0.3 * words[0].std()
    run.row = Row("adaface", "unet", {**FACE, "copies": 2, "objective": {"kind": "reconstruction"}})
    run.train("wider", **{"train.steps": 1, "model": str(target)})
    run.row = Row("adaface", "unet", {**FACE, "copies": 4, "objective": {"kind": "reconstruction"}})
    capsys.readouterr()
    run.train("widest", **{"train.steps": 1, "model": str(target)})
    assert "own adaface: copies [4, 4, 4] (it has [2, 2, 2])\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="is there already"):
        extend(source, target, 2)
    with pytest.raises(UserError, match="its method is arc2face; only adaface can be extended"):
        extend(path, run.folder / "x", 2)


@pytest.mark.parametrize("config", [adaface, mini_adaface, mini_arc2face])
def test_configs_are_valid_and_their_keys_are_explained(config):
    check_config(config.get_config())
    settings = adaface.get_config().control
    assert {*settings.keys()} == Settings.model_fields.keys()
    assert {*settings.objective.keys()} == ObjectiveSettings.model_fields.keys()


@pytest.mark.parametrize(("copies", "trained"), [(1, 85_056_003), (8, 184_275_459)])
def test_the_full_size_has_the_released_files_keys_and_shapes(copies, trained):
    lists = stored("adaface_official")
    released = next(keys for name, keys in lists.items() if name.endswith(f"state_dict, M={copies}"))
    reads = next(keys for name, keys in lists.items() if name.startswith("Arc2Face/encoder"))
    tower = {"layers": 12, "heads": 12, "mlp": 3072, "positions": 77}
    with torch.device("meta"):
        method = AdaFace(768, tower, tower, 512, 4, 16, [copies] * 12)
    for ours, theirs, prefix in (
        (method.word_tower, released, "prompt2token_proj.text_model."),
        (method.reader.tower, reads, "text_model."),
    ):
        shapes = {prefix + key: [*value.shape] for key, value in ours.state_dict().items()}
        left = {key for key in theirs if key not in shapes} - {MIX}
        assert all(theirs[key] == shape for key, shape in shapes.items())
        assert {key.removeprefix(prefix) for key in left if "obj_proj_in" not in key} == {TABLE}
    assert [*method.mix.weights.shape] == released[MIX]
    assert sum(parameter.numel() for _, parameter in method.trained_parameters(None)) == trained
