"""The text cache: hits equal misses bit for bit, nothing is loaded that need not be, and damage is mended."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from nearstep.errors import NearstepError
from nearstep.nets.text import PromptEncoder, build_tokenizer
from nearstep.nets.text_cache import CachedPromptEncoder, check_cache_folder, encoder_name

WORDS = "a small large red blue ball football slides bounces left right".split()
PROMPTS = ["a red ball", "", "a small blue football slides left"]


def tiny_encoder(vocabulary: int, seed: int = 0) -> UMT5EncoderModel:
    torch.manual_seed(seed)
    sizes = dict(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0)
    return UMT5EncoderModel(UMT5Config(vocab_size=vocabulary, **sizes)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("text"), build_tokenizer(WORDS, length=12)
    tokenizer.save_pretrained(folder / "tokenizer")
    tiny_encoder(len(tokenizer)).save_pretrained(folder / "text_encoder")
    return folder


def source_of(model: Path, dtype: torch.dtype | None = None) -> str:
    return encoder_name(model / "text_encoder", model / "tokenizer", dtype)


def cached(model: Path, folder: Path, load=None, dtype: torch.dtype | None = None) -> CachedPromptEncoder:
    whole = PromptEncoder.from_pretrained(model)
    load = load or (lambda: whole.encoder.to(dtype).eval())
    return CachedPromptEncoder(folder, source_of(model, dtype), whole.tokenizer, load)


def refuse() -> UMT5EncoderModel:
    raise AssertionError("the encoder was loaded")


def test_what_is_cached_needs_no_encoder_and_is_the_same(model: Path, tmp_path: Path) -> None:
    first = cached(model, tmp_path)(PROMPTS)
    again = cached(model, tmp_path, refuse)(PROMPTS[::-1])
    assert torch.equal(again.flip(0), first)
    plain = PromptEncoder.from_pretrained(model).eval()(PROMPTS)
    torch.testing.assert_close(first, plain)
    assert first.shape == plain.shape and not first.requires_grad
    with pytest.raises(AssertionError, match="was loaded"):
        cached(model, tmp_path, refuse)(["a red football"])


def test_an_entry_does_not_depend_on_who_asked(model: Path, tmp_path: Path) -> None:
    cached(model, tmp_path / "a")(PROMPTS)
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        for prompt in (" A&nbsp;red  ball", *PROMPTS[1:]):
            cached(model, tmp_path / "b")([prompt])
    entries = [sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.*")) for name in "ab"]
    missed = cached(model, tmp_path / "b").path("A red ball")  # another text, though this tokenizer reads it the same
    assert set(entries[1]) - set(entries[0]) == {missed.relative_to(tmp_path / "b")}
    for entry in set(entries[0]) & set(entries[1]):
        first, second = (load_file(tmp_path / name / entry)["features"] for name in "ab")
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_entries_are_as_computed_and_without_padding(model: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    encoder = cached(model, tmp_path, dtype=dtype)
    features = encoder(["a red ball"])
    entry = load_file(encoder.path("a red ball"))["features"]
    assert entry.dtype == features.dtype == dtype and entry.shape == (4, 16)  # three words and </s>
    assert torch.equal(features[0, :4], entry) and not features[0, 4:].any()


def test_another_encoder_type_length_or_tokenizer_is_another_entry(model: Path, tmp_path: Path) -> None:
    names = {source_of(model), source_of(model, torch.float32), source_of(model, torch.bfloat16)}
    for change in ("weights", "tokenizer"):
        other = tmp_path / change
        shutil.copytree(model, other)
        if change == "weights":
            tiny_encoder(len(WORDS) + 3, seed=1).save_pretrained(other / "text_encoder")
        else:
            build_tokenizer([*WORDS[1:], "snow"], length=12).save_pretrained(other / "tokenizer")
        names.add(source_of(other))
    assert len(names) == 5 and source_of(model) in names
    short, long = cached(model, tmp_path / "c"), cached(model, tmp_path / "c")
    long.length = 30
    assert short.path("a ball") != long.path("a ball")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-7]),
        lambda path: save_file({"features": torch.zeros(9, 16)}, path),
        lambda path: save_file({"other": torch.zeros(4, 16)}, path),
    ],
    ids=["empty", "cut", "another length", "another tensor"],
)
def test_a_damaged_entry_is_made_again_with_a_warning(model: Path, tmp_path: Path, damage) -> None:
    encoder = cached(model, tmp_path)
    whole = encoder(["a red ball"])
    damage(encoder.path("a red ball"))
    with pytest.warns(UserWarning, match="is damaged"):
        assert torch.equal(cached(model, tmp_path)(["a red ball"]), whole)
    assert torch.equal(cached(model, tmp_path, refuse)(["a red ball"]), whole)


def fill(model: Path, folder: Path) -> float:
    return float(cached(model, folder)(PROMPTS).sum())


def test_processes_may_share_a_folder(model: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        sums = pool.starmap(fill, [(model, tmp_path / "shared")] * 6)
    assert len(set(sums)) == 1
    files = [path for path in (tmp_path / "shared").rglob("*") if path.is_file()]
    assert len(files) == 3 and all(path.suffix == ".safetensors" for path in files)


def test_folders_that_cannot_be_are_one_line(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, message in ((tmp_path / "file", "is a file"), (tmp_path / "no" / "such", "there is no folder")):
        with pytest.raises(NearstepError, match=message):
            cached(model, folder)
    check_cache_folder(tmp_path / "run" / "text", parents=True)
    assert (tmp_path / "run" / "text").is_dir()
    with pytest.raises(NearstepError, match="is a file"):
        check_cache_folder(tmp_path / "file", parents=True)
    with pytest.raises(NearstepError, match="cannot be made"):
        check_cache_folder(tmp_path / "file" / "text", parents=True)
    with pytest.raises(NearstepError, match="'zebra'"):
        cached(model, tmp_path / "new", refuse)(["a zebra"])


def sentence_pieces() -> PreTrainedTokenizerFast:
    """UMT5's kind: a Unigram model of pieces that spells what it lacks in bytes."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    pieces += [("\u2581", -3.0), ("\u2581a", -2.0), ("\u2581red", -2.0), ("\u2581ball", -2.0)]
    pieces += [(letter, -5.0) for letter in "abcdelr"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair=None, special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def test_a_tokenizer_that_spells_in_bytes_knows_every_word(tmp_path: Path) -> None:
    tokenizer = sentence_pieces()
    encoder = PromptEncoder(tokenizer, tiny_encoder(len(tokenizer)))
    assert encoder.length == 512  # Wan's, where the tokenizer names none
    prompts = ["a red ball", "a красный Ball → 🙂!", "", "&lt;b&gt; a\u00a0red \n ball"]
    ids, mask = encoder.tokens(prompts)
    assert not (ids == tokenizer.unk_token_id).any() and (ids[mask.bool()] != 0).all()
    assert mask[0].sum() == 4 and mask[2].sum() == 1
    text = tokenizer.decode(ids[1][mask[1].bool()][:-1], skip_special_tokens=True)
    assert text.replace(" ", "") == "aкрасныйBall→🙂!"
    features = encoder(prompts)
    assert features.shape == (4, 512, 16) and not features[0, 4:].any()
    with pytest.raises(NearstepError, match="has 601 tokens, 512 fit"):
        encoder.tokens(["a " * 600])
    saved = CachedPromptEncoder(tmp_path, "bytes", tokenizer, lambda: encoder.encoder)
    torch.testing.assert_close(saved(prompts), features.detach())


def test_a_folder_that_another_process_makes_meanwhile_is_no_file(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    missing = iter([False])  # as it was a moment ago
    real = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: next(missing, True) if path == folder else real(path))
    check_cache_folder(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(NearstepError, match="is a file"):
        check_cache_folder(tmp_path / "file")
