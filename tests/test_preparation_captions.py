"""Captions from one text, sidecars, files of every format, and LLaVA's own classes at toy size."""

import json
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from feedface.common.errors import UserError
from feedface.preparation.captions import NoCaption, make_captioner, one_line
from feedface.preparation.llava import LlavaCaptioner, clean

PICTURES = ["anna/1.jpg", "anna/2.jpg", "bob/1.jpg", "top.png"]
ROWS = [("anna/1.jpg", "a woman, smiling"), ("2.jpg", 'she says "hi"'), ("bob/1.jpg", "ein Mann\nim Café")]


def from_file(file: Path, text: str | bytes, pictures=PICTURES):
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return make_captioner("file", file=file, pictures=pictures)


def all_of(captioner, pictures=PICTURES) -> dict[str, str]:
    results = captioner.caption_many([(rel, Path("photos") / rel, None) for rel in pictures])
    return {rel: str(result) for rel, result in zip(pictures, results, strict=True)}


def csv_text(delimiter: str) -> str:
    quoted = ['"{}"'.format(text.replace('"', '""')) for _, text in ROWS]
    lines = [delimiter.join(["Path", "other", "caption"])]
    lines += [f"{name}{delimiter}x{delimiter}{text}" for (name, _), text in zip(ROWS, quoted, strict=True)]
    return "\n".join(lines) + "\n"


FORMATS = {
    "object.json": json.dumps(dict(ROWS)),
    "list.json": json.dumps([{"file_name": name, "text": text, "x": {"y": 1}} for name, text in ROWS], indent=1),
    "lines.jsonl": "\n\n".join(json.dumps({"path": name, "caption": text}) for name, text in ROWS),
    "table.csv": csv_text(","),
    "table.tsv": "\ufeff" + csv_text("\t").replace("\n", "\r\n"),
}


def test_one_text_for_all():
    assert all_of(make_captioner())["top.png"] == "a photo of a person"
    assert all_of(make_captioner("none", text=" a  photo\n"))["top.png"] == "a photo"
    with pytest.raises(UserError, match="--caption_text"):
        make_captioner("none", text="  ")


def test_sidecars(tmp_path):
    texts = {"a.jpg.txt": "by full name", "a.txt": "by stem", "b.txt": "\ufeffzwei\r\nZeilen", "c.txt": " \n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "d.txt").write_bytes(b"caf\xe9")
    captions = make_captioner("sidecar").caption_many([(n, tmp_path / n, None) for n in ("a.jpg", "b.png", "a.webp")])
    assert captions == ["by full name", "zwei Zeilen", "by stem"]
    reasons = {"c.jpg": "c.txt is empty", "d.jpg": "d.txt:1: not UTF-8", "e.jpg": "neither e.jpg.txt nor e.txt"}
    for name, reason in reasons.items():
        with pytest.raises(NoCaption, match=reason) as caught:
            make_captioner("sidecar").caption(name, tmp_path / name)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same(tmp_path, name):
    captions = all_of(from_file(tmp_path / name, FORMATS[name]))
    assert captions == {
        "anna/1.jpg": "a woman, smiling",
        "anna/2.jpg": 'she says "hi"',
        "bob/1.jpg": "ein Mann im Café",
        "top.png": f"no caption: {name} has no caption for it",
    }


def test_names_that_fit_several_pictures_fit_none(tmp_path):
    captioner = from_file(tmp_path / "c.csv", "path,caption\n1.jpg,somebody\ntop.png,top\nnobody.jpg,x\n")
    captions = all_of(captioner)
    assert (
        captions["anna/1.jpg"]
        == captions["bob/1.jpg"]
        == ("no caption: c.csv:2: 1.jpg fits 2 pictures (anna/1.jpg, bob/1.jpg); write more of their paths")
    )
    assert captions["top.png"] == "top" and captioner.unused == ["nobody.jpg"]


def test_an_exact_name_comes_before_a_part_of_one(tmp_path):
    pictures = ["1.jpg", "anna/1.jpg", "bob/1.jpg"]
    captions = all_of(from_file(tmp_path / "c.json", '{"1.jpg": "top", "bob/1.jpg": "bob"}', pictures), pictures)
    assert captions["1.jpg"] == "top" and captions["bob/1.jpg"] == "bob"
    assert captions["anna/1.jpg"].startswith("no caption")


def test_longer_paths_backslashes_and_composed_accents(tmp_path):
    pictures = ["anna/1.jpg", "é/2.jpg"]
    decomposed = unicodedata.normalize("NFD", "é")
    rows = {"/data/photos/anna/1.jpg": "one", f".\\{decomposed}\\2.jpg": "two"}
    assert all_of(from_file(tmp_path / "c.json", json.dumps(rows), pictures), pictures) == {
        "anna/1.jpg": "one",
        "é/2.jpg": "two",
    }


def test_the_same_said_twice_is_no_contradiction(tmp_path):
    text = '{"path": "top.png", "caption": "a"}\n' * 2
    assert all_of(from_file(tmp_path / "c.jsonl", text))["top.png"] == "a"


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("c.jsonl", '{"path": "top.png", "caption": "a"}\n{"path": "./top.png", "caption": "b"}', "jsonl:1.*jsonl:2"),
        ("c.json", '{"top.png": "a",\n "top.png": "b"}', "two values"),
        ("c.json", '{"top.png": "a",\n\n "1.jpg": 5}', "c.json:3: 1.jpg: the caption must be a string .* not 5"),
        ("c.json", '[{"path": "a"},\n{"path": "b", "caption": "c"}]', "c.json:1: no caption or text"),
        ("c.json", '[{"path": "b", "caption": "c"},\n3]', "c.json:2: not an object"),
        (
            "c.json",
            '[{"path": "b", "text": "c"},\n{"path": "x", "text": {"a": 1}}]',
            "c.json:2: text: .*'a': 1",
        ),
        ("c.json", '{"a": "b"', "c.json:1: not valid JSON"),
        ("c.json", '"text"', "neither an object nor a list"),
        ("c.json", "{}", "names no pictures"),
        ("c.jsonl", '{"path": "a", "caption": "b"}\n\n{"path": 3, "caption": "b"}', "c.jsonl:3: path: .* not 3"),
        ("c.jsonl", '{"path": "a", "caption": ""}', "c.jsonl:1: caption: .*something in it"),
        ("c.jsonl", '{"path": "a", "caption": null}', "c.jsonl:1: caption: .* not None"),
        ("c.jsonl", "[1]", "c.jsonl:1: not an object"),
        ("c.jsonl", "nope", "c.jsonl:1: not valid JSON"),
        ("c.csv", "top.png,a\n", "c.csv:1: not a header"),
        ("c.csv", "path,caption\ntop.png,one, two\n", "c.csv:2: 3 cells under 2 .* commas into double quotes"),
        ("c.csv", 'path,caption\n"a\nb",x\nq,"y', "c.csv:4: not CSV"),
        ("c.csv", "path,caption\n", "names no pictures"),
        ("c.txt", "x", "not a kind of file"),
        ("c.csv", "  \n", "empty file"),
        ("c.csv", b"path,caption\na,caf\xe9", "c.csv:2: not UTF-8"),
    ],
)
def test_files_that_cannot_be_used_name_the_line(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as caught:
        from_file(tmp_path / name, text)
    assert "\n" not in str(caught.value)


def test_missing_files_and_kinds(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        make_captioner("file", file=tmp_path / "c.csv", pictures=PICTURES)
    with pytest.raises(UserError, match="--caption_file"):
        make_captioner("file", file=None, pictures=PICTURES)
    with pytest.raises(UserError, match="none, sidecar, file, llava"):
        make_captioner("blip")


# --- LLaVA: transformers' own classes, with random weights -----------------------------------------------------------

WORDS = [
    "a",
    "woman",
    "man",
    "in",
    "red",
    "coat",
    "walks",
    "smiles",
    "beach",
    "street",
    ".",
    ",",
    "USER",
    "ASSISTANT",
    ":",
]


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory):
    """What is in a folder of llava-hf/llava-1.5-7b-hf, at toy size."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("llava")
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    size = {"height": 28, "width": 28}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    torch.manual_seed(3)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # large enough for answers to depend on the picture
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(llava_folder):
    return LlavaCaptioner(llava_folder, device="cpu", batch_size=3, max_new_tokens=12)


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(0)
    sizes = [(40, 60), (64, 64), (120, 30), (33, 47), (28, 28)]
    return [
        (f"{i}.jpg", Path(f"{i}.jpg"), generator.integers(0, 256, (*size, 3), np.uint8)) for i, size in enumerate(sizes)
    ]


def test_llava_answers_in_one_line_that_depends_on_the_picture(llava, pictures):
    captions = llava.caption_many(pictures)
    assert all(isinstance(caption, str) and caption and "\n" not in caption for caption in captions)
    assert len(set(captions)) > 1
    assert not any(token in caption for caption in captions for token in ("<image>", "</s>", "<pad>", "ASSISTANT :"))


def test_llava_says_the_same_alone_and_in_any_company(llava, pictures):
    captions = llava.caption_many(pictures)
    assert [llava.caption(*picture) for picture in pictures] == captions
    assert llava.caption_many(pictures[::-1]) == captions[::-1]


def test_llava_is_what_transformers_generates(llava, llava_folder, pictures):
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(llava_folder)
    model = LlavaForConditionalGeneration.from_pretrained(llava_folder)
    inputs = processor(images=Image.fromarray(pictures[0][2]), text=llava._prompt, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 4
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    text = processor.decode(tokens, skip_special_tokens=True)
    assert clean(text, whole=2 in tokens.tolist()) == llava.caption(*pictures[0])


def test_llava_by_kind(llava_folder, pictures):
    captioner = make_captioner("llava", model=llava_folder, device="cpu", batch_size=2)
    assert captioner.kind == "llava" and isinstance(captioner.caption(*pictures[0]), str)


def test_processors_of_older_uploads_lack_what_the_config_knows(llava_folder, tmp_path, llava, pictures):
    folder = shutil.copytree(llava_folder, tmp_path / "old")
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    for key in ("patch_size", "vision_feature_select_strategy"):
        settings.pop(key)
    file.write_text(json.dumps(settings))
    old = LlavaCaptioner(folder, device="cpu", batch_size=3, max_new_tokens=12)
    assert old.caption_many(pictures) == llava.caption_many(pictures)


@pytest.mark.parametrize(
    "missing, message",
    [
        ("*.safetensors", r"the weights \(\*.safetensors\) of LLaVA is missing there; `hf download llava-hf/llava-1.5"),
        ("config.json", "config.json of LLaVA is missing"),
        ("tokenizer.json", "tokenizer.json of LLaVA is missing"),
        ("processor_config.json", "preprocessor_config.json of LLaVA is missing"),
    ],
)
def test_incomplete_folders_say_what_is_missing(llava_folder, tmp_path, missing, message):
    folder = shutil.copytree(llava_folder, tmp_path / "part")
    for file in folder.glob(missing):
        file.unlink()
    with pytest.raises(UserError, match=message):
        LlavaCaptioner(folder, device="cpu")


def test_broken_and_foreign_weights(llava_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llava_folder, tmp_path / "broken")
    weights = folder / "model.safetensors"
    whole = load_file(weights)
    save_file({key: value for key, value in whole.items() if "projector" not in key}, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"not all of LLaVA's \(.*projector.* is missing\)"):
        LlavaCaptioner(folder, device="cpu")
    weights.write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be loaded as LLaVA"):
        LlavaCaptioner(folder, device="cpu")


def test_weights_that_are_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"no such folder; `hf download llava-hf/llava-1.5-13b-hf --local-dir"):
        LlavaCaptioner(tmp_path / "llava", device="cpu")
    with pytest.raises(UserError, match=r"neither a folder nor in the cache .*hf download nobody/nothing"):
        LlavaCaptioner("nobody/nothing", device="cpu")


def test_answers_become_captions():
    assert clean('  "A man\nin a hat."\n') == "A man in a hat."
    assert clean("A man stands. He wears a ha", whole=False) == "A man stands."
    assert clean("A man stands in the", whole=False) == "A man stands in the"
    assert one_line(" a\u2028b\tc ") == "a b c" and re.fullmatch(r"", clean(' "" '))
