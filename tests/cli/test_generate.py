"""``nearstep generate`` and ``info`` on the tiny model, as a user calls them."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import av
import pytest
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from nearstep import files
from nearstep.cli.main import main
from nearstep.flow import plan
from nearstep.models import folder
from nearstep.stream import pipeline

PROMPT = "a small red ball slides left"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def generate(model_folder: Path):
    def call(*arguments: str) -> int:
        return main(["generate", *arguments, "--model", str(model_folder)])

    return call


def written() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def test_one_prompt_one_file_that_says_how_it_was_made(generate, capsys, model_folder: Path) -> None:
    assert generate(PROMPT, "--plan", "4,1x", "--seed", "7", "-o", "out/ball.mp4") == 0
    out, err = capsys.readouterr()
    assert out == "out/ball.mp4\n"
    assert (
        "plan 4,1x: 6 steps + 2 commits" in err and "seed 7" in err and "network in float32, decoder in float32" in err
    )
    with av.open("out/ball.mp4") as container:
        made = json.loads(container.metadata["comment"])
        assert container.streams.video[0].frames == 21
    assert (made["prompt"], made["plan"], made["seed"], made["sample"]) == (PROMPT, "4,1x", 7, 0)
    assert made["model"] == str(model_folder)


def test_many_clips_are_files_of_a_folder_and_what_exists_is_skipped(generate, capsys) -> None:
    Path("prompts.txt").write_text(f"{PROMPT}\n\na blue football\n")
    arguments = ("--prompts-file", "prompts.txt", "--samples", "2", "--seed", "1", "--format", "gif", "-o", "clips")
    expected = [f"clips/{p}-{i}.gif" for p in (PROMPT, "a blue football") for i in (0, 1)]
    assert generate(*arguments) == 0
    assert capsys.readouterr().out.splitlines() == expected
    assert written() == sorted([*expected, "prompts.txt"])
    before = {path: Path(path).read_bytes() for path in expected}
    Path(expected[1]).unlink()
    assert generate(*arguments) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == expected[1:2] and "skipped, made by this request already" in err and "and 2 more" in err
    assert {path: Path(path).read_bytes() for path in expected} == before  # alone or among others, the same clip
    assert generate(*arguments) == 0
    assert capsys.readouterr().out == ""
    assert generate(*arguments, "--overwrite") == 0
    assert capsys.readouterr().out.splitlines() == expected


def test_a_prompt_that_is_given_twice_is_made_once_and_said(generate, capsys) -> None:
    assert generate(PROMPT, PROMPT, "--seed", "1", "--format", "gif", "-o", "clips/") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"clips/{PROMPT}-0.gif"] and "more than once is made once" in err


def test_a_folder_is_opened_a_plan_parsed_and_a_prompt_encoded_once(generate, monkeypatch) -> None:
    opened, parsed, tokenised, encoded = [], [], [], []

    def counted(owner, name, calls):
        whole = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **more: (calls.append(given), whole(*given, **more))[1])

    counted(folder.ModelFolder, "open", opened)
    counted(plan, "parse", parsed)
    counted(PreTrainedTokenizerFast, "__call__", tokenised)
    counted(UMT5EncoderModel, "forward", encoded)
    assert generate(PROMPT, "--plan", "4,1x", "--samples", "3", "--seed", "1", "-o", "clips/") == 0
    assert (len(opened), len(tokenised), len(encoded)) == (1, 1, 1)
    assert parsed.count(("4,1x",)) == 1  # beside the plans in the model's settings
    assert len(written()) == 3


def test_a_prompt_file_may_be_a_table(generate, capsys) -> None:
    Path("prompts.csv").write_text(f"id,caption\n1,{PROMPT}\n2,a blue football\n")
    assert generate("--prompts-file", "prompts.csv", "--dry-run", "-o", "clips/") == 0
    assert capsys.readouterr().out.splitlines() == [f"clips/{PROMPT}-0.mp4", "clips/a blue football-0.mp4"]
    Path("twice.txt").write_text(f"{PROMPT}\n{PROMPT}\n")
    assert generate("--prompts-file", "twice.txt", "--dry-run", "-o", "clips/") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"clips/{PROMPT}-0.mp4"] and "made once (1)" in err


def test_a_file_that_shows_something_else_is_refused(generate, capsys) -> None:
    asked = (PROMPT, "--plan", "2", "--seed", "7", "-o", "a.mp4")
    assert generate(*asked) == 0
    before = Path("a.mp4").read_bytes()
    assert generate(*asked) == generate(PROMPT, "--plan", "2", "-o", "a.mp4") == 0
    out, err = capsys.readouterr()
    assert out == "a.mp4\n" and err.count("skipped, made by this request already: a.mp4") == 2
    other = {
        "prompt": ("a blue football", "--plan", "2", "--seed", "7"),
        "plan": (PROMPT, "--plan", "1", "--seed", "7"),
        "seed": (PROMPT, "--plan", "2", "--seed", "8"),
        "latents": (PROMPT, "--plan", "2", "--seed", "7", "--frames", "13"),
        "guidance": (PROMPT, "--plan", "2", "--seed", "7", "--guidance", "3"),
        "negative prompt": (PROMPT, "--plan", "2", "--seed", "7", "--guidance", "3", "--negative", "snow"),
        "network": (PROMPT, "--plan", "2", "--seed", "7", "--network", "teacher"),
    }
    for name, arguments in other.items():
        assert generate(*arguments, "-o", "a.mp4") == 2
        err = capsys.readouterr().err
        assert (f"({name} " in err and "--overwrite" in err) or (name == "negative prompt" and "asked for" in err), name
    assert Path("a.mp4").read_bytes() == before
    assert generate(*other["plan"], "-o", "a.mp4", "--overwrite") == 0
    assert Path("a.mp4").read_bytes() != before


@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp", "png"])
def test_every_format_says_what_it_shows(generate, suffix: str, capsys) -> None:
    for text in (b"", b"some bytes", b"\x89PNG\r\n\x1a\n"):
        Path(f"a.{suffix}").write_bytes(text)
        assert generate(PROMPT, "--plan", "1", "--seed", "7", "-o", f"a.{suffix}") == 2
        assert "does not say what it shows" in capsys.readouterr().err
    assert generate(PROMPT, "--plan", "1", "--seed", "7", "-o", f"a.{suffix}", "--overwrite") == 0
    assert generate(PROMPT, "--plan", "1", "--seed", "7", "-o", f"a.{suffix}") == 0
    assert "skipped" in capsys.readouterr().err
    assert generate(PROMPT, "--plan", "1", "--seed", "8", "-o", f"a.{suffix}") == 2


def test_a_teacher_and_a_sheet(generate, capsys) -> None:
    assert generate(PROMPT, "--network", "teacher", "--seed", "1", "-o", "ball.png") == 0
    assert "plan 3: 3 steps + 0 commits a clip, guidance 2" in capsys.readouterr().err
    assert written() == ["ball.png"]


def test_one_sheet_shows_all_clips(generate, capsys) -> None:
    assert generate(PROMPT, "--samples", "2", "--seed", "1", "-o", "out", "--sheet", "out/sheet.png") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "out/sheet.png"
    assert written() == [f"out/{PROMPT}-0.mp4", f"out/{PROMPT}-1.mp4", "out/sheet.png"]


def test_dry_run_makes_nothing(generate, capsys) -> None:
    assert generate(PROMPT, "--dry-run", "--seed", "1") == 0
    out, err = capsys.readouterr()
    assert out == f"{PROMPT}-0.mp4\n" and "plan 2: 6 steps" in err
    assert written() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([PROMPT, "--plan", "4,x"], "does not parse"),
        ([PROMPT, "--frames", "20"], "4n+1"),
        ([PROMPT, "--height", "30"], "multiple of 16"),
        ([PROMPT, "--network", "nurse"], "has no nurse/; it holds"),
        ([PROMPT, "-o", "clip.avi"], "a file ends in .mp4"),
        ([PROMPT, "-o", "/proc/clip.mp4"], "cannot write /proc/clip.mp4"),
        ([PROMPT, "a ball", "-o", "clip.mp4"], "2 clips do not fit into the file"),
        ([PROMPT, "--samples", "0"], "at least 1"),
        ([PROMPT, "--format", "gif", "-o", "o.mp4"], "name two formats"),
        ([PROMPT, "-o", "o.png", "--sheet", "o.png"], "is a clip's file, too"),
        ([PROMPT, "--negative", "snow"], "acts through guidance"),
        ([PROMPT, "--plan", ""], "plan '' does not parse"),
        ([""], "a prompt is empty"),
        (["  \t"], "a prompt is empty"),
        (["&nbsp;"], "a prompt is empty"),
        (["!!!"], "reads no word in '!!!'"),
        (["a \udc80 ball"], "half a character"),
        ([PROMPT, "-o", "n" * 300 + ".mp4"], "304 bytes; 255 are allowed"),
        ([PROMPT, "-o", "n" * 300 + "/"], "300 bytes; 255 are allowed"),
        ([PROMPT, "-o", "/".join(["x" * 200] * 25) + "/y.mp4"], "are too many"),
        ([PROMPT, "-o", "a\0b.mp4"], "holds a NUL"),
        ([PROMPT, "-o", "o.mp4", "--sheet", "é" * 130 + ".png"], "264 bytes; 255"),
        (["--prompts-file", "nothing.txt"], "cannot read nothing.txt"),
        (["a ball", "a small elephant"], "does not know the word 'elephant'"),
    ],
    ids=str,
)
def test_mistakes_are_found_before_anything_is_made(
    generate, arguments: list[str], message: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.CausalVideoPipeline, "denoiser", lambda *_: pytest.fail("a network was run"))
    assert generate(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert written() == []


def test_a_full_disk_keeps_what_is_finished(generate, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fill(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fill)
    assert generate("a ball", "a football", "-o", "clips/", "--seed", "1") == 2
    assert written() == ["clips/a ball-0.mp4"]
    assert "cannot write clips/a football-0.mp4: No space left on device" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_finished(generate, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    play = pipeline.CausalVideoPipeline.play

    def interrupted(self, request, **options):
        frames = play(self, request, **options)
        yield next(frames)
        if request.prompts == ("a football",):
            raise KeyboardInterrupt
        yield from frames

    monkeypatch.setattr(pipeline.CausalVideoPipeline, "play", interrupted)
    assert generate("a ball", "a football", "-o", "clips/", "--seed", "1") == 130
    assert written() == ["clips/a ball-0.mp4"]
    assert "interrupted" in capsys.readouterr().err


def test_info_says_what_a_model_is(model_folder: Path, capsys) -> None:
    assert main(["info", str(model_folder)]) == 0
    text = capsys.readouterr().out
    assert "in chunks of 3 x 2 latent frames" in text and "bidirectional" in text and "4,1x" in text
    assert main(["info", str(model_folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    pipe = pipeline.CausalVideoPipeline.from_pretrained(model_folder)
    for name in ("transformer", "vae", "text_encoder"):
        parameters = {id(p): p.numel() for p in getattr(pipe, name).parameters()}  # shared ones once
        assert facts["components"][name]["parameters"] == sum(parameters.values())
    assert facts["networks"]["transformer"]["plans"]["4,1x"] == {"steps": 6, "commits": 2, "calls": 8}


def test_a_clip_goes_home_behind_an_equals_sign(model_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a small red ball slides left", "--model", str(model_folder), "--output=~/a.mp4"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
