"""A low-memory bundle draws what an ordinary one draws, to the bit, and holds one group of parts at a time."""

import shutil
from pathlib import Path

import pytest
import torch
from tests.toy import make_toy_bundle, toy_face_controlnet, toy_uvit

from feedface.checkpoints.bundle import Bundle, read_index, save_component, write_index
from feedface.checkpoints.few_step import FewStep, save_few_step
from feedface.common.errors import UserError
from feedface.diffusion.sampling import sample
from feedface.inference import low_memory
from feedface.inference.acceleration import DynamicInt8Linear, Int8Linear, blocks, quantise_int8
from feedface.inference.low_memory import LowMemoryBundle, WideningLinear
from feedface.inference.model_files import DRAWING_NETWORKS, load_model, model_digest

CPU = torch.device("cpu")
SITE = "mid_block.mlp.fc1"


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """The toy model with a few-step adapter beside it."""
    folder = make_toy_bundle(tmp_path_factory.mktemp("toy"))
    weight = toy_uvit().get_submodule(SITE).weight
    pair = (torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2) / 4)
    adapter = FewStep((800, 400), 2.0, 1.0, "true_uncond", {f"backbone.{SITE}": pair})
    save_few_step(folder / "few_step", adapter)
    index = read_index(folder)
    write_index(
        folder,
        name=index.name,
        image_size=index.image_size,
        defaults=index.defaults,
        components={part: path.name for part, path in index.components.items()} | {"few_step": "few_step"},
    )
    return folder


def load(folder: Path, **options) -> Bundle:
    return load_model(folder, None, CPU, torch.float32, **options)


@torch.inference_mode()
def draw(bundle: Bundle, few_step: bool = False) -> torch.Tensor:
    """A picture as the pipeline draws it: text, face, sampling, decoding."""
    text = bundle.text_encoder.encode(["a man"])
    crop = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = {name: value[None] for name, value in bundle.method.features(crop).items()}
    identity = bundle.method.identity(features)
    backbone, method = bundle.networks(few_step)
    state = sample(
        backbone, {"text": text}, [5], steps=2, guidance=2.0, method=method, identity=identity, latent_size=(8, 8)
    )
    return bundle.vae.decode(state["img"])


def in_memory(bundle: LowMemoryBundle) -> set[str]:
    """The parts that have weights, found without asking the bundle for them."""
    return {kind for kind, module in bundle._modules.items() if not any(p.is_meta for p in module.parameters())}


def test_the_same_picture_with_one_group_in_memory_at_a_time(toy: Path):
    bundle = load(toy, low_memory=True)
    assert in_memory(bundle) == set()
    expected = draw(load(toy))
    assert torch.equal(draw(bundle), expected)
    assert in_memory(bundle) == {"vae"}
    uvit = bundle.backbone
    assert in_memory(bundle) == {"backbone"}
    assert bundle.text_encoder.encode(["a man"]).shape == (1, 16, 8)
    assert in_memory(bundle) == {"text_encoder"}
    assert all(parameter.is_meta for parameter in uvit.parameters())  # a reference holds no memory
    assert torch.equal(draw(bundle), expected)
    assert bundle.backbone is uvit
    assert bundle.image_encoder is None


def test_weights_stored_in_half_stay_so_in_the_blocks(toy: Path):
    bundle = load(toy, low_memory=True)
    plain = load(toy)
    for network, parts in ((bundle.backbone, plain.backbone), (bundle.method, plain.method)):
        wide = {name for name, module in network.named_modules() if isinstance(module, WideningLinear)}
        for name, value in parts.state_dict().items():
            own = network.state_dict()[name]
            assert own.dtype == (torch.float16 if name.rpartition(".")[0] in wide else torch.float32)
            assert torch.equal(own.float(), value)
    assert isinstance(bundle.backbone.get_submodule(SITE), WideningLinear)
    assert isinstance(bundle.method.blocks[0].cross_attn.to_k, WideningLinear)
    assert bundle.method.projector.weight.dtype == torch.float32  # others ask it what tokens should be
    half = load_model(toy, None, CPU, torch.float16, low_memory=True)
    assert {value.dtype for value in half.backbone.parameters()} == {torch.float16}
    assert not any(isinstance(module, WideningLinear) for module in half.backbone.modules())


def test_what_is_known_without_weights(toy: Path):
    low, plain, index = load(toy, low_memory=True), load(toy), read_index(toy)
    assert low.size_multiple == plain.size_multiple == index.size_multiple == 16
    assert model_digest(low) == model_digest(plain) == model_digest(index)
    assert (low.name, low.image_size, low.defaults) == (plain.name, plain.image_size, plain.defaults)
    assert in_memory(low) == set()


def test_what_is_broken_is_said_at_once(toy: Path, tmp_path):
    folder = Path(shutil.copytree(toy, tmp_path / "toy"))
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="vae: cannot be read"):
        load(folder, low_memory=True)
    uvit = folder / "uvit" / "config.json"
    uvit.write_text(uvit.read_text().replace('"embed_dim": 32', '"embed_dim": 64'))
    with pytest.raises(UserError, match=r"uvit/model.safetensors: \S+ has shape"):
        load(folder, low_memory=True)
    uvit.write_text('{"patch_size": "two"}')
    with pytest.raises(UserError, match=r"uvit/config.json.*patch_size"):
        _ = read_index(folder).size_multiple


def test_another_face_controlnet_is_read_from_where_it_is(toy: Path, tmp_path):
    save_component("method", toy_face_controlnet(), tmp_path / "net")
    low, plain = (load_model(toy, tmp_path / "net", CPU, torch.float32, low_memory=low) for low in (True, False))
    assert torch.equal(draw(low), draw(plain))
    assert not torch.equal(draw(low), draw(load(toy)))
    assert "few_step" not in low.components  # it was made for the model's own


def test_a_few_step_adapter_stays_merged_when_networks_are_read_again(toy: Path):
    low, plain = load(toy, low_memory=True), load(toy)
    without = draw(plain)
    # The adapter is rounded once to what the weights are kept in: half precision here.
    first = draw(low, few_step=True)
    torch.testing.assert_close(
        low.networks(few_step=True)[0].get_submodule(SITE).weight.float(),
        plain.networks(few_step=True)[0].get_submodule(SITE).weight,
        atol=1e-3,
        rtol=1e-3,
    )
    torch.testing.assert_close(first, draw(plain, few_step=True), atol=2e-2, rtol=0)
    assert not torch.allclose(first, without, atol=2e-2)
    assert torch.equal(draw(low, few_step=True), first)
    assert torch.equal(draw(low), without)
    assert torch.equal(draw(low, few_step=True), first)


def test_int8_weights_stay_in_memory(toy: Path, monkeypatch):
    low, plain = load(toy, low_memory=True), load(toy)
    rounded = DynamicInt8Linear.__init__
    dtypes = []
    monkeypatch.setattr(
        DynamicInt8Linear, "__init__", lambda self, of: dtypes.append(of.weight.dtype) or rounded(self, of)
    )
    quantise_int8(low, CPU)
    assert set(dtypes) == {torch.float16}  # widened a layer at a time
    monkeypatch.undo()
    quantise_int8(plain, CPU)
    assert torch.equal(draw(low), draw(plain))
    assert in_memory(low) == {"backbone", "method", "vae"}
    with pytest.raises(UserError, match="8 bits cannot take a few-step adapter"):
        low.networks(few_step=True)


def test_layers_go_to_the_device_one_at_a_time_where_networks_do_not_fit(toy: Path, monkeypatch):
    monkeypatch.setattr(low_memory, "_fits", lambda *_: False)
    bundle = load(toy, low_memory=True)
    expected = draw(load(toy))
    assert torch.equal(draw(bundle), expected)
    for block in blocks(bundle):
        assert all(parameter.is_meta for parameter in block.parameters())  # accelerate has them in main memory
    assert not torch.equal(draw(bundle, few_step=True), expected)
    assert torch.equal(draw(bundle), expected)


@pytest.mark.parametrize("fits_now", [True, False])
def test_int8_of_networks_that_do_not_fit(toy: Path, monkeypatch, fits_now: bool):
    """They are rounded in main memory; then they fit, or their layers go to the device one at a time."""
    answers = iter([False, fits_now])
    monkeypatch.setattr(low_memory, "_fits", lambda *_: next(answers))
    bundle, plain = load(toy, low_memory=True), load(toy)
    for each in (bundle, plain):
        quantise_int8(each, torch.device("cuda"))  # what a GPU gets, on the CPU
    expected = draw(plain)
    assert torch.equal(draw(bundle), expected) and torch.equal(draw(bundle), expected)
    for block in blocks(bundle):
        layers = [module for module in block.modules() if isinstance(module, Int8Linear)]
        assert layers and all(layer.weight.is_meta != fits_now for layer in layers)


def test_only_gpus_can_be_too_small(toy: Path, monkeypatch):
    bundle = load_model(toy, None, torch.device("meta"), None)
    numbers = sum(value.numel() for net in (bundle.backbone, bundle.method) for value in net.parameters())
    monkeypatch.setattr(low_memory, "RESERVE_BYTES", 0)
    for free, dtype, fits in ((2 * numbers, torch.float16, True), (2 * numbers - 1, torch.float16, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        assert low_memory._fits(bundle, torch.device("cuda"), dtype) == fits
        assert low_memory._fits(bundle, CPU, dtype)


def test_a_part_cannot_be_put_in(toy: Path):
    bundle = load(toy, low_memory=True)
    assert {kind for kind in DRAWING_NETWORKS if getattr(bundle, kind) is not None} == set(DRAWING_NETWORKS)
    with pytest.raises(AttributeError, match="reads its vae itself"):
        bundle.vae = load(toy).vae
