"""AdaFace's golden arrays, with the product's classes: see `golden_check.py`.

Weights and inputs are drawn from their names, in float64 and then rounded: not as in the other methods' golden data.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tests.golden_check import Computed
from torch import Tensor

from feedface.checkpoints.adaface import KEPT, MIX, RESET, SUFFIX, assembled
from feedface.checkpoints.arc2face import TABLE, arc2face_of
from feedface.common.gradients import with_gradient_times
from feedface.diffusion import compositional_losses as compose
from feedface.diffusion import teacher_steps as teacher
from feedface.diffusion.ddim import LeadingDdim
from feedface.diffusion.plan import Evaluation, falling
from feedface.diffusion.sampling import integrate
from feedface.diffusion.schedule import alphas_cumprod
from feedface.encoders import TextEncoder
from feedface.methods.adaface import AdaFace
from feedface.text_tower import extended

TOLERANCE, GRADIENT, STAGE = 1e-4, 1e-3, 2e-3
GENERATOR = "gen."
REASONS = {
    "ids.": "an input",
    "s1.img_mask": "an input",
    "s1.fg_mask": "an input",
    "bg.": "the background generator is for training alone, and later versions of AdaFace have none",
    "ldm.": "indices and masks, inputs here",
    "delta.loss_nomask": "every prompt has a mask here",
    "fn.ortho_last2": "nothing here is orthogonal over two dimensions",
    "fn.delta_align": "one of two kinds, of which the losses have each its own",
    **dict.fromkeys(
        ("ddim7.final", "ddim7.timesteps"),
        "where 1000 is no multiple of the steps, the authors' grid has one more of them",
    ),
    "eval.": "of several faces in a picture; here the largest one counts",
    "pre.": "faces are cropped before they are resized here",
}


def drawn(name: str, shape: Sequence[int], scale: float) -> Tensor:
    """Standard normal times `scale`, from a generator keyed by the name."""
    generator = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    return torch.from_numpy(scale * generator.standard_normal(tuple(shape))).float()


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A state dict drawn from its names; the weights of norms are about 1."""
    norms = {name: "norm" in name and name.endswith("weight") for name in shapes}
    return {name: drawn(name, shape, 0.05) + norms[name] for name, shape in shapes.items()}


def computed(config: dict[str, Any], arrays: Mapping[str, Tensor], shapes: dict[str, Any]) -> Computed:
    """Every array that the file has and that this program computes."""
    golden_set = GoldenSet(config, arrays, shapes)
    for part in (
        golden_set.towers(),
        golden_set.averages(),
        golden_set.texts(),
        golden_set.first_stage(),
        golden_set.second_stage(),
    ):
        yield from part


class Tokens:
    """A tokenizer of ids alone: the golden data has those."""

    def __init__(self, size: int):
        self.size = size

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(self.size)}

    def __len__(self) -> int:
        return self.size


class GoldenSet:
    """One set: models, inputs, arrays."""

    def __init__(self, config: dict[str, Any], arrays: Mapping[str, Tensor], shapes: dict[str, Any]):
        self.config, self.arrays, self.shapes = config, arrays, shapes
        self.vectors, self.width = config["n_vec"], config["width"]

    def drawn(self, name: str, *shape: int, scale: float = 1) -> Tensor:
        return drawn(self.config["input_prefix"] + name, shape, scale)

    def ids(self, name: str) -> Tensor:
        return self.arrays[f"ids.{name}"].long()

    # ---------------------------------------------------------------------------------------------------- the towers

    @cached_property
    def base(self) -> dict[str, Tensor]:
        return weights(self.shapes["base"])

    def state(self, prefix: str, **changed: Tensor) -> dict[str, Tensor]:
        own = {key.removeprefix(prefix): value for key, value in self.base.items() if key.startswith(prefix)}
        return {key.removeprefix("text_model."): value for key, value in own.items()} | changed

    def generator(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.base.items() if key.startswith(prefix)}

    def method(self, multiplier: str = "", prefix: str = GENERATOR, vectors: int = 0, **changed: Tensor) -> AdaFace:
        """Encoder and generator; `multiplier` names a list of the shapes file, `changed` are weights of the latter."""
        config = self.config
        wider = weights(self.shapes["multipliers"].get(multiplier, {}))
        generator = self.generator(prefix)
        generator.pop(SUFFIX, None)  # tested by itself
        generator |= {key.removeprefix(GENERATOR): value for key, value in wider.items()} | changed
        reader = arc2face_of(
            self.state("arc2face."),
            self.ids("arc22").tolist(),
            4,
            vectors or self.vectors,
            config["face_dim"],
            config["heads"],
        )
        return assembled(
            reader, generator, self.ids("template77").tolist(), KEPT if MIX in changed else RESET, config["heads"]
        )

    @cached_property
    def person(self) -> AdaFace:
        return self.method()

    @cached_property
    def face(self) -> Tensor:
        return F.normalize(self.drawn("face", self.config["batch"], self.config["face_dim"]), dim=-1)

    @cached_property
    def states(self) -> Tensor:
        """P [B,N,W]: of set A the encoder's, of others an input."""
        if self.vectors == self.arrays["arc.P"].shape[1]:
            return self.person.reader(self.face)
        return self.drawn("P", self.config["batch"], self.vectors, self.width)

    @torch.no_grad()
    def towers(self) -> Computed:
        yield from self._face_tower()
        yield from self._word_tower()
        yield from self._extended()
        yield from self._gradients()

    def _face_tower(self) -> Computed:
        reader = self.method(vectors=self.arrays["arc.P"].shape[1])
        # After the person stand tokens that nothing else of this file needs.
        rest = self.state("arc2face.")[TABLE][self.ids("arc22")[reader.persons.stop :]]
        reader.reader.template = torch.nn.Buffer(torch.cat([reader.reader.template, rest]))
        yield "arc.full", reader.reader.read(self.face), TOLERANCE
        yield "arc.P", reader.reader(self.face), TOLERANCE
        yield "arcwide.P", self._wide(), TOLERANCE

    def _wide(self) -> Tensor:
        wide = self.config["wide"]
        state = weights(self.shapes["wide"])
        state = {key.removeprefix("arcwide.").removeprefix("text_model."): value for key, value in state.items()}
        method = arc2face_of(state, self.ids("arc22").tolist(), 4, 16, wide["face_dim"], wide["heads"])
        return method.reader(F.normalize(self.drawn("face512", 1, 512), dim=-1))

    def _word_tower(self) -> Computed:
        person, n = self.person, self.vectors
        full = person.written(self.states[:1], person.word_template)
        yield "gen.m1.E", person.words(self.states), TOLERANCE
        yield "gen.m1.full", full, TOLERANCE
        yield "gen.pad_embeddings", person.pads, TOLERANCE
        begin = n + 6
        for name, end in (("half", begin + (77 - begin - 1) // 2), ("full", 76)):
            padded = full.clone()
            padded[:, begin:end] = person.pads[begin:end]
            yield f"gen.m1.{name}_pad", padded, TOLERANCE
        for scale in self.config["strengths"]:
            words = person.words(self.states[:1])
            yield f"gen.m1.E_strength_{scale:g}", scale * words + (1 - scale) * person.pads[person.persons], TOLERANCE
        channels = 1 + self.drawn("lw_channels", 3, self.width, scale=0.3)
        given = torch.tensor(self.config["layer_weights_given"])[:, None]
        for name, weights in (("given", given), ("channel_mean", channels)):
            yield f"gen.m1.E_lw_{name}", self.method(**{MIX: weights}).words(self.states[:1]), TOLERANCE
        last = torch.tensor([[0.0], [0.0], [1.0]])
        for name, weights in (("lw_per_channel", channels), ("last_layer_only", last)):
            method = self.method()
            method.mix.weights = torch.nn.Parameter(weights)
            yield f"gen.m1.E_{name}", method.words(self.states[:1]), TOLERANCE
        for name in self.config["multipliers"]:
            yield f"gen.{name}.E", self.method(name).words(self.states), TOLERANCE
        slots = n + self.config["suffix"]
        suffix = self._suffix().expand(1, -1, -1)
        for name, states in (("on", torch.cat([self.states[:1], suffix], dim=1)), ("off", self.states[:1])):
            written = person.written(states, self._suffix_template())
            yield f"gen.suffix.E_{name}", written[:, 4 : 4 + slots], TOLERANCE

    def _suffix(self) -> Tensor:
        return drawn(GENERATOR + SUFFIX, (1, self.config["suffix"], self.width), 0.05)

    def _suffix_template(self) -> Tensor:
        """With a comma more for each suffix slot."""
        ids = self.ids("template77").clone()
        comma, end = ids[4], 4 + self.vectors + 2
        ids[end : end + self.config["suffix"]] = comma
        return self.generator(GENERATOR)[f"prompt2token_proj.text_model.{TABLE}"][ids]

    def _extended(self) -> Computed:
        tower, base = self.person.word_tower, self.person.words(self.states)
        twice = self.method()
        twice.word_tower = extended(extended(tower, 2, noise=0), 2, noise=0)
        yield "check.ext_2x2_no_noise_maxdiff", (twice.words(self.states) - base).abs().max(), 1e-5
        yield from self._structure(extended(tower, 4, generator=torch.Generator().manual_seed(0)), tower)

    def _structure(self, four, tower) -> Computed:
        """Of what was drawn at random only its first part can be the same, and the spread."""
        width = self.width
        theirs = {name: self.arrays[f"ext.{name}"] for name in ("x4.k", "x4.v", "x4.kbias", "x8.k")}
        first, before = four.layers[0].self_attn, tower.layers[0].self_attn
        for name in "kv":
            ours = getattr(first, f"{name}_proj").weight.clone()
            ours[width:] = theirs[f"x4.{name}"][width:]
            yield f"ext.x4.{name}", ours, TOLERANCE
        yield "ext.x4.kbias", first.k_proj.bias, TOLERANCE
        spreads = [0.1 * getattr(before, f"{name}_proj").weight.repeat(3, 1).std(1).mean() for name in "kv"]
        yield "ext.x4.noise_std", torch.stack(spreads), TOLERANCE
        added = [
            (getattr(first, f"{n}_proj").weight - getattr(before, f"{n}_proj").weight.repeat(4, 1))[width:].std()
            for n in "kv"
        ]
        yield "ext.x4.measured_std", torch.stack(added), 0.1 * float(torch.stack(spreads).max())
        first.k_proj.weight.copy_(theirs["x4.k"])
        eight = extended(four, 2).layers[0].self_attn.k_proj.weight.clone()
        eight[4 * width :] = theirs["x8.k"][4 * width :]
        yield "ext.x8.k", eight, TOLERANCE

    def _gradients(self) -> Computed:
        target = self.drawn("G", self.config["batch"], self.vectors, self.width)
        names = {
            MIX: lambda method: method.mix.weights,
            "final_layer_norm.weight": lambda method: method.word_tower.final_layer_norm.weight,
            "layer0.v_proj.weight": lambda method: method.word_tower.layers[0].self_attn.v_proj.weight,
        }
        for scale in self.config["gradient_scales"]:
            method, states = self.method().requires_grad_(True), self.states.clone().requires_grad_(True)
            with torch.enable_grad():
                loss = (with_gradient_times(scale, method.words(states)) * target).sum()
            loss.backward()
            yield f"grad.s{scale:g}.loss", loss, GRADIENT
            for name, get in names.items():
                yield f"grad.s{scale:g}.{name}", get(method).grad, GRADIENT
            yield f"grad.s{scale:g}.P", states.grad[:1], GRADIENT

    # ---------------------------------------------------------------------------------------------- photos and texts

    @torch.no_grad()
    def averages(self) -> Computed:
        faces = F.normalize(self.drawn("photo_faces", 3, self.config["face_dim"]), dim=-1)
        sixteen = self.method(vectors=16)
        names = {"id_emb": "embeddings", "img_prompt_emb": "states", "ada_prompt_emb": "words"}
        for name, average in names.items():
            sixteen.average = average
            words = sixteen.identity(sixteen.features(faces[None]))["words"]
            yield f"avg.{name}.E", words[0], TOLERANCE
            half = faces.half()  # which the authors normalise in half precision, and the method once more
            if average == "embeddings":
                half = F.normalize(half.mean(0, keepdim=True), dim=-1)
            states = sixteen.reader(half.float())
            yield f"avg16.{name}.E", sixteen.identity({"states": states[None]})["words"][0], TOLERANCE

    @cached_property
    def words(self) -> Tensor:
        """[1,16,W]: the average of three photos."""
        faces = F.normalize(self.drawn("photo_faces", 3, self.config["face_dim"]), dim=-1)
        sixteen = self.method(vectors=16)
        return sixteen.identity(sixteen.features(faces[None]))["words"]

    @cached_property
    def text(self) -> TextEncoder:
        from transformers import CLIPTextConfig, CLIPTextModel

        state = self.state("sd.")
        size, width = state[TABLE].shape
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=size,
                hidden_size=width,
                intermediate_size=self.config["mlp"],
                num_hidden_layers=self.config["layers"],
                num_attention_heads=self.config["heads"],
                max_position_embeddings=self.config["max_positions"],
                hidden_act=self.config["hidden_act"],
                eos_token_id=size - 1,
            )
        )
        clip.load_state_dict(state)
        return TextEncoder(clip, Tokens(size))

    @torch.no_grad()
    def texts(self) -> Computed:
        table = torch.cat([self.state("sd.")[TABLE], self.words[0]])
        yield "wrap.table_rows", table[-20:], TOLERANCE
        ids = self.ids("wrap_prompt")[None]
        yield "wrap.prompt_embeds", self.text.encode_tokens(ids, self.words), TOLERANCE
        negative = self.ids("wrap_negative")[None]
        yield "wrap.negative_embeds", self.text.encode_tokens(negative, self.words), TOLERANCE
        yield from self._layer_weighted()

    def _layer_weighted(self) -> Iterator[tuple[str, Tensor, float]]:
        for weights in self.config["text_layer_weights"]:
            name = "_".join(f"{weight:g}" for weight in weights)
            states = self.text.encode_tokens(self.ids("ldm_text")[None], self.words, weights)
            yield f"ldm.text_w{name}", states, TOLERANCE

    # ------------------------------------------------------------------------------------------------ the first stage

    @torch.no_grad()
    def first_stage(self) -> Computed:
        table = [[int(teacher.shifted(torch.tensor(t), n)) for t in (0, 250, 500, 999)] for n in (1, 2, 3, 5, 7)]
        yield "s1.t_shift", torch.tensor(table), 0.5
        for name in {key[3:-2] for key in self.arrays if key.startswith("s1.n") and key.endswith(".t")}:
            count, _, guidance = name.removeprefix("n").partition("_cfg")
            yield from self._distilled(name, int(count), float(guidance or 1))
        x0, noise = self.drawn("s1.x0", 3, 4, 8, 8), self.drawn("s1.noise0", 3, 4, 8, 8)
        weight = teacher.face_weight(self._masks[0], self._masks[1], background=0.1)
        yield "s1.recon_bg0.1", teacher.weighted_mean_square(x0 - noise, weight), STAGE
        states, changes = self.drawn("pt", 2, 16, self.width), self.drawn("pt_noise", 2, 16, self.width)
        yield "fn.perturb", teacher.perturbed(states, changes, 0.1, keep_norm=False), TOLERANCE
        yield "fn.perturb_keepnorm", teacher.perturbed(states, changes, 0.8), TOLERANCE
        places = torch.tensor([0, 1, 10, 100, 500, 981, 999])
        yield "sched.alphas_cumprod_at_0_1_10_100_500_981_999", alphas_cumprod()[places], 1e-6

    @property
    def _masks(self) -> tuple[Tensor, Tensor]:
        """Of what is picture and what is face, [3,1,8,8]; given."""
        valid, face = (self.arrays[f"s1.{name}_mask"].float()[:, None] for name in ("img", "fg"))
        return valid, face

    def _net(self, alpha: float, beta: float, scale: float, wave, context: str, negative: str, guidance: float):
        """The stand-in networks of the golden set, under guidance."""
        rows = 77 if context in ("ctxS",) else 16
        told = self.drawn(f"s1.{context}", 3, rows, self.width)
        untold = self.drawn(f"s1.{negative}", 3, rows, self.width)
        untold = untold[:1].expand_as(untold) if negative == "ctxU" else untold

        def net(x: Tensor, t: Tensor) -> Tensor:
            changes = [
                wave(t / scale).reshape(-1, 1, 1, 1) * c[: len(x)].mean(1)[:, :4, None, None] for c in (told, untold)
            ]
            conditional, unconditional = (alpha * x + beta * change for change in changes)
            return unconditional + guidance * (conditional - unconditional)

        return net

    def _distilled(self, name: str, count: int, guidance: float) -> Computed:
        taught = self._net(0.7, 2.0, 250, torch.cos, "ctxT", "ctxNeg", guidance)
        # In the arrays the student is without guidance, whatever their description says.
        student = self._net(0.6, 3.0, 300, torch.sin, "ctxS", "ctxU", 1)
        noises = [self.drawn(f"s1.noise{i}", 3, 4, 8, 8) for i in range(count)]
        prefix = self.config["input_prefix"]
        shares = [
            torch.from_numpy(
                np.random.Generator(np.random.Philox(key=zlib.crc32(f"{prefix}s1.u{i}".encode()))).random(3, np.float32)
            )
            for i in range(1, count)
        ]
        times = torch.tensor(self.config["stage1"]["t0"])
        steps = teacher.teacher_steps(taught, self.drawn("s1.x0", 3, 4, 8, 8), times, noises, shares)
        found = {"t": torch.stack([step.t for step in steps])}
        found |= {"eps_T": torch.stack([s.predicted for s in steps]), "x0": torch.stack([s.x0 for s in steps])}
        valid, face = self._masks
        for kind, bugs in (("authors", True), ("intended", False)):
            inputs = teacher.student_inputs(steps, bugs)
            pairs = [(student(x, step.t), step.predicted) for x, step in zip(inputs, steps, strict=True)]
            losses, deltas = zip(*[teacher.step_losses(*pair, face, valid) for pair in pairs], strict=True)
            found[f"{kind}.loss_steps"], found[f"{kind}.delta_steps"] = torch.stack(losses), torch.stack(deltas)
            found[f"{kind}.loss_steps_nomask"] = torch.stack([teacher.step_losses(*pair)[0] for pair in pairs])
            found[f"{kind}.total"] = (sum(losses) + sum(deltas)) / count**0.5
        for key, value in found.items():
            if f"s1.{name}.{key}" in self.arrays:
                yield f"s1.{name}.{key}", value, {"t": 0.5, "eps_T": 1e-3, "x0": 5e-3}.get(key, STAGE)

    # ----------------------------------------------------------------------------------------------- the second stage

    def second_stage(self) -> Computed:
        yield from self._four_prompts()
        yield from self._differences()
        layers = self._layers
        face = torch.zeros(1, 1, 64, 64)
        face[..., 12:44, 20:52] = 1
        mix = {}
        for name, normed in (("raw", False), ("ln", True)):
            mix[name] = compose.mix_losses(layers, normed)
            yield f"s2.mix_{name}", mix[name], TOLERANCE
        for name, normed in (("raw", False), ("norm", True)):
            kept = compose.preserve_losses(layers, face, normed)
            yield f"s2.preserve_{name}", torch.cat([kept[:2], torch.zeros(1), kept[2:]]), 5e-4
        totals = [compose.mix_total(mix["raw"], False), 0.5 * compose.mix_total(mix["ln"], True)]
        yield "s2.total_mix_weighted", 1e-4 * torch.stack(totals), TOLERANCE * 1e-4
        yield "s2.total_preserve_weighted", compose.preserved(kept) * torch.tensor([5e-4, 2.5e-4]), 5e-7
        yield from self._sampled()
        yield from self._matched()
        yield from self._foreground(face)

    @cached_property
    def _layers(self) -> list[compose.Layer]:
        stage = self.config["stage2"]
        channels, heads, tokens = (stage[name] for name in ("channels", "heads", "tokens"))
        sizes = {7: 16, 8: 16, 12: 8, **dict.fromkeys((16, 17, 18), 16), **dict.fromkeys((19, 20, 21), 32)}
        sizes |= dict.fromkeys((22, 23, 24), 64)
        made = []
        for number, size in sizes.items():
            wide = {18: 32, 21: 64}.get(number, size)
            queries = self.drawn(f"q{number}", 4, heads, size**2, channels // heads).transpose(2, 3)
            scores = self.drawn(f"attn{number}", 4, heads, size**2, tokens, scale=0.5)
            layer = compose.Layer(
                scores[..., 5:9].sum(-1),
                queries.reshape(4, channels, size, size),
                self.drawn(f"feat{number}", 4, channels, wide, wide),
                (0.5 if number in (7, 8) else 1) / 11,
            )
            made.append(layer)
        return made

    def _differences(self) -> Computed:
        u, v = (self.drawn(name, 2, 5, 12) for name in ("u", "v"))
        yield "fn.ortho", compose.orthogonal(u, v), TOLERANCE
        yield "fn.ortho_l2", compose.orthogonal(u, v).square().mean(), TOLERANCE
        for power in (2, 3):
            for demeaned in (0, 1):
                a, b = (x - demeaned * x.mean(-1, keepdim=True) for x in (u, v))
                loss = compose.unlike(a, b, power)
                yield f"fn.refcos_e{power}_dm{demeaned}_al1", loss.mean(), TOLERANCE
                yield f"fn.refcos_e{power}_dm{demeaned}_al0", (1 - loss).clamp(min=0).mean(), TOLERANCE
        texts = self.drawn("delta4", 4, 16, 77, 12).requires_grad_(True)
        real = torch.zeros(2, 77)
        real[0, 1:9] = real[1, 1:20] = 1
        loss = torch.stack([compose.prompt_loss(texts[:, layer], real) for layer in range(16)]).mean()
        loss.backward()
        yield "delta.loss", loss, TOLERANCE
        yield "delta.grad_absmean", texts.grad.abs().mean((1, 2, 3)), TOLERANCE * 1e-3
        spread = self.drawn("dist", 2, 9, 4)
        yield "fn.distribute", torch.stack([compose.spread(row, 2, 4) for row in spread]), TOLERANCE
        scores = self.drawn("fattn", 2, 3, 64).abs()
        yield "fn.spatial_attn", scores.mean(1).reshape(2, 1, 8, 8), TOLERANCE
        yield "fn.spatial_weight", compose.away_from(scores, (8, 8)), TOLERANCE
        yield "fn.spatial_weight_up", compose.away_from(scores, (16, 16)), TOLERANCE
        yield "fn.dyn_scale", compose.dynamic_scale(torch.tensor([0.1, 0.3, 0.5, 0.9])), TOLERANCE
        mask = (self.drawn("rm", 1, 1, 64, 64) > 1.2).float()
        yield "fn.resize_mask", compose.face_at(mask, (8, 8)), TOLERANCE
        person, other = self.drawn("mix", 64, 20, 8).unflatten(0, (2, 2, 16))
        halves = []
        for low in (0.7, 0.8):
            noise = 0.85 * (1 - 0.3 * 0.4)
            rows = [
                compose.mixed(person[:1, i], other[:1, i], slice(5, 9), (i - 4) / 11, low, noise) for i in range(4, 16)
            ]
            halves.append(torch.cat([other[0, :4], *rows]))
        yield "fn.mix_vk_second_half_inst0", torch.cat(halves, dim=1), TOLERANCE
        yield "fn.mix_vk_rows_subj0", person[:1, 0].repeat(1, 2, 1), TOLERANCE

    def _sampled(self) -> Computed:
        """DDIM under guidance that falls from 4 to 1, with a stand-in for the network."""
        for count in (50, 7):
            wanted = self.arrays[f"ddim{count}.guidance"]
            yield f"ddim{count}.guidance", torch.tensor(falling(4, 1, len(wanted))), TOLERANCE
        told, untold = (self.drawn(f"dd.{name}", 2, 77, self.width).mean(1)[:, :4, None, None] for name in "cu")

        def model(state, t, guidance, **options):
            halves = [0.9 * state["img"] + torch.cos(torch.tensor((t - 1) / 250)) * change for change in (told, untold)]
            return {"img": halves[1] + guidance * (halves[0] - halves[1])}

        solver = LeadingDdim(50)
        yield "ddim50.timesteps", solver.timesteps, 0.5
        times = (solver.timesteps + 1).tolist()
        plan = [Evaluation(t, guidance=g) for t, g in zip(times, falling(4, 1, 50), strict=True)]
        state = {"img": self.drawn("dd.xT", 2, 4, 8, 8)}
        yield "ddim50.final", integrate(model, state, solver, plan)["img"], 1e-3

    def _matched(self) -> Computed:
        face = (self.drawn("em.m", 1, 1, 64) > 1).flatten()
        queries, features = self.drawn("em.q", 4, 10, 64, scale=0.5), self.drawn("em.f", 4, 10, 64)
        losses, background = compose.matching(queries, features, face)
        yield "s2.elastic", losses, TOLERANCE
        yield "s2.elastic_sc_below", background[:1, None], TOLERANCE
        yield "s2.elastic_mc_below", background[1:, None], TOLERANCE

    def _foreground(self, face: Tensor) -> Computed:
        heads, tokens = self.config["stage2"]["heads"], self.config["stage2"]["tokens"]
        for name, told in (("with", True), ("no", False)):
            total = 0
            for number, layer in zip((7, 8, 12, *range(16, 25)), self._layers, strict=True):
                pixels = layer.scores.shape[-1]
                scores = self.drawn(f"attn{number}", 4, heads, pixels, tokens, scale=0.5)[:2]
                size = int(pixels**0.5)
                mask = compose.face_at(face, (size, size)).expand(2, -1, -1, -1)
                background = scores[..., 15:17].sum(-1) if told else None
                losses = compose.foreground_losses(scores[..., 5:9].sum(-1), background, mask, ratio=2)
                total = total + layer.weight * losses
            yield f"s2.fgbg_{name}_bg", total, TOLERANCE

    def _four_prompts(self) -> Computed:
        """The encoded prompts of a person and a class, as the U-Net and the loss between them are given them."""
        ids, first = self.ids("four"), 5
        words = {prefix: self.method(prefix=prefix, vectors=16).words for prefix in (GENERATOR, "gen0.")}
        states = self.method(vectors=16).reader(self.face[:1])
        live, frozen = (words[prefix](states).detach() for prefix in (GENERATOR, "gen0."))
        size = self.state("sd.")[TABLE].shape[0]
        slots = torch.arange(size, size + 16)
        given = ids.clone()
        given[:2, first : first + 16] = slots
        masks = (ids != 49406) & (ids != 49407)
        for kind, single in (("recon", live), ("compos_distill", 0.9 * frozen + 0.1 * live)):
            rows = torch.cat([single, live, live, live])
            texts = self.text.encode_tokens(given, rows, (1, 2, 2)).detach()
            texts = torch.stack([*texts[:2], *(compose.merged(text, first, 2) for text in texts[2:])])
            yield f"ldm.four_{kind}_iter.merged", texts, TOLERANCE
            texts.requires_grad_(True)
            loss = compose.prompt_loss(texts, masks[:2])
            yield f"ldm.{kind}_iter.prompt_delta_loss", loss, TOLERANCE
            if kind == "recon":
                ours = torch.autograd.grad(loss, texts)[0]
                # Up to the composition both prompts are the same: a cosine of nothing, whose gradient is rounding.
                ours[:, : first + 16] = self.arrays["ldm.prompt_delta_grad"][:, : first + 16]
                yield "ldm.prompt_delta_grad", ours, TOLERANCE
        distributed = torch.stack([compose.spread(text, first, 16) for text in texts[2:].detach()])
        yield "ldm.four_compos.distributed", distributed, TOLERANCE
