"""Drawing where blocks are CUDA graphs, acted on a CPU: what a graph gave is overwritten once an evaluation begins."""

from dataclasses import dataclass

import pytest
import torch
from tests.test_methods import ROWS, Row, Setting
from tests.toy import make_toy_bundle, toy_uvit
from torch import Tensor, nn

from feedface.checkpoints.few_step import FewStep, adapted
from feedface.common.errors import UserError
from feedface.diffusion.sampling import sample
from feedface.inference.acceleration import check_cuda_graphs, compile_blocks
from feedface.pipeline import FeedFacePipeline


@dataclass
class Networks:
    backbone: nn.Module
    method: nn.Module | None = None


class Graphs:
    """Compiles nothing; what a block gave turns into NaN when the next evaluation is said to begin."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.given: list[Tensor] = []
        self.blocks: list[nn.Module] = []
        graphs = self

        def compile_block(block: nn.Module, mode: str) -> None:
            assert mode == "reduce-overhead"
            graphs.blocks.append(block)
            block.register_forward_hook(lambda block, args, out: graphs.replayed(out))

        monkeypatch.setattr(nn.Module, "compile", compile_block)
        monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", self.overwrite)

    def replayed(self, out):
        if isinstance(out, Tensor):
            self.given.append(out.clone())
            return self.given[-1]
        return type(out)(map(self.replayed, out))

    def overwrite(self) -> None:
        for value in self.given:
            value.fill_(torch.nan)
        self.given.clear()


def draw(setting: Setting, reuse: int = 1) -> Tensor:
    people = setting.people()
    prompt = setting.prompt(people)
    return sample(
        setting.backbone,
        prompt,
        seeds=(3, 4),
        steps=5,
        scheduler="dpmsolver++:uniform",
        guidance=4.0,
        empty_prompt={"text": setting.text[:1]},
        guidance_interval=(150, 1000),
        pag_scale=1.0,
        pag_interval=(500, 1000),
        method=setting.method,
        identity=people,
        reuse=reuse,
    )["img"]


@pytest.mark.parametrize("row", ROWS, ids=str)
@torch.no_grad()
def test_a_picture_needs_nothing_that_was_overwritten(row: Row, monkeypatch):
    graphs = Graphs(monkeypatch)
    setting = Setting(row).trained()
    reuses = (1, 2) if setting.backbone.reusable else (1,)
    expected = [draw(setting, reuse) for reuse in reuses]
    compile_blocks(Networks(setting.backbone, setting.method), graphs=True)
    for reuse, plain in zip(reuses, expected, strict=True):
        assert torch.equal(draw(setting, reuse), plain)
    assert graphs.given, "no block was a graph"


@torch.no_grad()
def test_what_a_graph_gave_is_gone_in_the_next_evaluation(monkeypatch):
    """That the graphs acted here do what the test above is about."""
    graphs, uvit = Graphs(monkeypatch), toy_uvit()
    compile_blocks(Networks(uvit), graphs=True)
    conditions = uvit.conditions({"text": torch.randn(1, uvit.text_tokens, uvit.text_dim)})
    state = {name: torch.randn(1, *shape) for name, shape in uvit.state_shapes().items()}
    uvit(state, torch.tensor([500.0]), conditions)
    first = list(graphs.given)
    assert all(value.isfinite().all() for value in first)
    uvit(state, torch.tensor([400.0]), conditions)
    assert first and all(value.isnan().all() for value in first)


def test_the_second_network_of_an_adapter_is_graphs_too(monkeypatch):
    graphs, uvit = Graphs(monkeypatch), toy_uvit()
    compile_blocks(Networks(uvit), graphs=True)
    uvit.mid_block._compiled_call_impl = lambda: None  # as `Module.compile` leaves it
    count = len(graphs.blocks)
    pair = torch.randn(2, uvit.embed_dim), torch.randn(3 * uvit.embed_dim, 2)
    twin = adapted(FewStep((1000,), 1.0, 1.0, "paper", {"backbone.mid_block.attn.qkv": pair}), "backbone", uvit)
    assert graphs.blocks[count:] == [twin.mid_block]


def test_refused(tmp_path):
    make_toy_bundle(tmp_path / "model")
    with pytest.raises(UserError, match="--cuda_graphs: cpu is no CUDA device"):
        FeedFacePipeline.from_pretrained(tmp_path / "model", device="cpu", cuda_graphs=True)
    with pytest.raises(UserError, match="--cuda_graphs: --low_memory moves the weights"):
        check_cuda_graphs(torch.device("cuda"), low_memory=True)
