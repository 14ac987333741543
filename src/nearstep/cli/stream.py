"""``nearstep stream``: a video without an end in sight, written as it is made; or a recorded one again."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nearstep.cli.arguments import FLAGS, parsed
from nearstep.cli.made import is_made
from nearstep.cli.options import (
    AS_IT_IS,
    OWN_FRAME_SIZE,
    FlatFrameSize,
    FlatLoading,
    Model,
    optional,
    place,
)
from nearstep.cli.pipe import check_pipe, is_pipe, standard_output
from nearstep.cli.text import note
from nearstep.errors import NearstepError
from nearstep.files import check_writable
from nearstep.models.configs import ModelConfigs
from nearstep.models.folder import EMBEDDED, ModelFolder
from nearstep.models.prompts import check_prompt, check_prompts
from nearstep.shapes import TEMPORAL_STRIDE
from nearstep.stream.mp4 import Grow, growing_mp4, piped_mp4
from nearstep.stream.output import count_frames, pixels
from nearstep.stream.recording import Recording

if TYPE_CHECKING:
    from torch import Tensor

    from nearstep.stream.decoding import Deferred
    from nearstep.stream.pipeline import CausalVideoPipeline
    from nearstep.stream.session import Session

SECONDS = 10  # of video, unless --chunks says otherwise


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Stream a video to a file, chunk after chunk: it can be watched as it grows, and what was made stays.

    Ctrl-C ends it. A file that shows this stream already is skipped, any other is not touched without --overwrite.
    With "-o - | ffplay -" a player shows it as it is made.

    The prompt may change on the way: --at 8 "a small green frog drifts up". --log keeps a recording; --replay
    makes it again, also under another plan: draft at 1, final at 4.
    """

    prompt: Annotated[tyro.conf.Positional[str | None], optional("PROMPT", "the recording's")] = None
    """What it shows first."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.mp4")]
    """Where to; - is standard output, for a player behind a pipe."""
    model: Model = EMBEDDED
    plan: Annotated[str | None, optional("PLAN")] = None
    """"4,1x": first chunk 4 steps, the rest 1; "adaptive": until the steps agree; "fps:16": as the machine allows."""
    chunks: Annotated[int | None, optional("N", f"{SECONDS} seconds, or the recording's")] = None
    """How many."""
    at: Annotated[
        tuple[tuple[int, str], ...], tyro.conf.arg(metavar="CHUNK PROMPT", help_behavior_hint="(repeatable)")
    ] = ()
    """The prompt from a chunk on."""
    image: Annotated[Path | None, optional("FILE", "none")] = None
    """A picture to go on from."""
    video: Annotated[Path | None, optional("FILE", "none")] = None
    """A video to go on from, cut and resized to the stream's size and rate; of a long one, the end."""
    seed: Annotated[int | None, optional("N", "random, and printed")] = None
    """Names all noise."""
    size: FlatFrameSize = OWN_FRAME_SIZE
    """Size of a frame."""
    window: Annotated[int | None, optional("FRAMES", "as far as it was trained")] = None
    """Newest latent frames that a chunk sees."""
    sink: Annotated[int | None, optional("FRAMES", "the first chunk")] = None
    """First latent frames that it sees in addition."""
    no_relative_sink: bool = False
    """See those where they lie, further away with every chunk, and not as if just before the window."""
    log: Annotated[Path | None, optional("FILE.jsonl", "none")] = None
    """Keeps a recording, line by line."""
    final: Annotated[Path | None, optional("FILE.mp4", "none")] = None
    """With --tiny-decoder: the same stream in the codec's pixels, made beside; -o is the preview, at once."""
    replay: Annotated[Path | None, optional("FILE.jsonl", "none")] = None
    """A recording to make again."""
    overwrite: bool = False
    """Replace files that are there already, whatever they show."""
    loading: FlatLoading = AS_IT_IS
    """Network, device, precision, decoder."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and stream."""
    stream(parsed(Stream, "nearstep stream", arguments, flags=(*FLAGS, tyro.conf.UseAppendAction)))


def stream(options: Stream) -> None:
    """Make what is options, after checking all of it."""
    _check(options)
    options.loading.check()
    folder = ModelFolder.open(options.model)
    typed = dict.fromkeys(filter(None, (options.prompt,)), "") | {text: f"--at {chunk}" for chunk, text in options.at}
    check_prompts(folder, typed)  # torch and diffusers are seconds away
    model = options.loading.open(folder)
    recording = Recording.load(options.replay) if options.replay else None
    count = _count(options, model, recording)
    said = _said(options, model, recording, count)
    if _is_made(options, model, said, count):
        note(f"skipped, made by this request already: {options.output} (--overwrite makes it again)")
        return
    pipe = options.loading.pipeline(model)
    for _, prompt in options.at:
        pipe.prompt_encoder.tokens([prompt])  # of a tokenizer that could not be asked before
    with _session(options, pipe, recording) as session:
        note(place(pipe))
        if options.loading.compile:
            note("compiling; the stream begins when all that it needs is there")
            session.warm_up()
        _write(options, pipe, session, count, said)


def _count(options: Stream, model: ModelConfigs, recording: Recording | None) -> int:
    """Chunks to make; those that prompts change at are among them."""
    if recording is not None:
        there = len(recording.chunks)
        if not there:
            raise NearstepError(f"--replay {options.replay}: the recording holds no chunk, so there is nothing to make")
        if (options.chunks or 0) > there:
            raise NearstepError(f"--chunks {options.chunks}: the recording has {there}, and a replay ends with it")
        return options.chunks or there
    frames = TEMPORAL_STRIDE * (model.transformer.get("chunk_frames") or 1)
    count = options.chunks or max(1, round(SECONDS * model.settings.fps / frames))
    if late := [chunk for chunk, _ in options.at if chunk >= count]:
        raise NearstepError(f"--at {late[0]}: {count} chunks are made, 0 to {count - 1}; give more with --chunks")
    return count


def _said(options: Stream, model: ModelConfigs, recording: Recording | None, count: int) -> dict[str, Any]:
    """What the file says of itself: all that was asked for."""
    settings, size = model.settings, options.size
    asked: dict[str, Any] = {
        "prompt": options.prompt,
        "seed": options.seed,
        "height": size.height or settings.height,
        "width": size.width or settings.width,
        "given_window": options.window,
        "given_sink": options.sink,
        "no_relative_sink": options.no_relative_sink,
    }
    if recording is not None:
        asked = {**asdict(recording.opening), "replay": recording.digest}
    own_plan = recording.opening.plan if recording is not None else settings.default_plan
    return {
        **asked,
        "plan": own_plan if options.plan is None else options.plan,
        "chunks": count,
        "changes": [[chunk, prompt] for chunk, prompt in sorted(options.at)],
        "image": _content(options.image),
        "video": _content(options.video),
        "model": options.model,
        **model.origin,
        **options.loading.departures,
    }


def _content(path: Path | None) -> str | None:
    """A file to go on from, by its name and by what is in it: another one may lie there tomorrow."""
    if path is None or not path.is_file():
        return path and path.name
    with path.open("rb") as file:
        return f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def _of_codec(said: Mapping[str, Any]) -> dict[str, Any]:
    """What the file of final pixels says of itself: no tiny decoder made them."""
    return {name: value for name, value in said.items() if name != "tiny_decoder"}


def _is_made(options: Stream, model: ModelConfigs, said: dict[str, Any], count: int) -> bool:
    """Whether all of it is there; a file that shows something else, or a part, is refused."""
    if options.overwrite:
        return False
    wanted = {options.output: said} | ({options.final: _of_codec(said)} if options.final else {})
    there = [path for path, shown in wanted.items() if not is_pipe(path) and _shows(path, options, model, shown, count)]
    if there and len(there) == len(wanted):
        return True
    if there:
        missing = next(path for path in wanted if path not in there)
        raise NearstepError(f"{there[0]} is there already, {missing} is not; --overwrite makes both again")
    if options.log and options.log.exists():
        raise NearstepError(f"--log {options.log} is there already; --overwrite replaces it, or name another file")
    return False


def _shows(path: Path, options: Stream, model: ModelConfigs, said: dict[str, Any], count: int) -> bool:
    """Whether a file is there that shows the whole stream."""
    unasked = ("seed",) if options.seed is None and not options.replay else ()
    if not is_made(path, said, ignoring=unasked):
        return False
    first = 0 if options.image or options.video else TEMPORAL_STRIDE - 1
    frames = TEMPORAL_STRIDE * (model.transformer.get("chunk_frames") or 1) * count - first
    if (there := count_frames(path)) == frames:
        return True
    raise NearstepError(f"{path} is there with {there} of {frames} frames of this stream; --overwrite makes it again")


def _session(options: Stream, pipe: CausalVideoPipeline, recording: Recording | None) -> Session:
    from nearstep.stream.opening import read_picture

    image = read_picture(options.image) if options.image else None
    if recording is not None:
        video = _context(options, pipe, recording.opening.height, recording.opening.width)
        return pipe.replay(
            recording, options.plan, image=image, video=video, prefetch=True, final=options.final is not None
        )
    assert options.prompt is not None  # _check has seen to that
    height, width = options.size.height, options.size.width
    return pipe.open(
        options.prompt,
        options.plan,
        seed=options.seed,
        height=height,
        width=width,
        image=image,
        video=_context(options, pipe, height or pipe.settings.height, width or pipe.settings.width),
        window=options.window,
        sink=options.sink,
        relative_sink=False if options.no_relative_sink else None,
        prefetch=not options.at,  # else prompts would come a chunk late
        final=options.final is not None,
        log=options.log,
    )


def _check(options: Stream) -> None:
    if (options.prompt is None) == (options.replay is None):
        raise NearstepError("give a prompt to begin with, or --replay FILE.jsonl, and not both")
    if options.image and options.video:
        raise NearstepError("give --image or --video to go on from, not both")
    fixed = {"at": options.at, "seed": options.seed, "height": options.size.height, "width": options.size.width,
             "window": options.window, "sink": options.sink, "no-relative-sink": options.no_relative_sink,
             "log": options.log}  # fmt: skip
    if options.replay and (told := [name for name, value in fixed.items() if value]):
        raise NearstepError(f"--{told[0]} is in the recording already; a replay may change --plan alone")
    if options.chunks is not None and options.chunks < 1:
        raise NearstepError(f"--chunks {options.chunks}: at least 1")
    if late := [chunk for chunk, _ in options.at if chunk < 1]:
        raise NearstepError(f"--at {late[0]}: the first chunk is 0, and has the prompt; give 1 or later")
    if twice := [chunk for chunk, times in Counter(chunk for chunk, _ in options.at).items() if times > 1]:
        raise NearstepError(f"--at {twice[0]} is given twice; a chunk has one prompt")
    for prompt in (options.prompt, *(prompt for _, prompt in options.at)):
        if prompt is not None:
            check_prompt(prompt)
    if is_pipe(options.output):
        check_pipe()
    elif options.output.suffix.lower() != ".mp4":
        raise NearstepError(f"-o {options.output}: a stream is written to a file that ends in .mp4, or to - (a pipe)")
    if options.final and options.loading.tiny_decoder is None:
        raise NearstepError("--final: the codec makes -o already; give --tiny-decoder FILE to make it, as a preview")
    if options.final and options.final.suffix.lower() != ".mp4":
        raise NearstepError(f"--final {options.final}: a stream is written to a file that ends in .mp4")
    for path in (options.output, options.log, options.final):
        if path and not is_pipe(path):
            check_writable(path)
    _check_apart(options)


def _check_apart(options: Stream) -> None:
    """No file that is written may be another one, read or written."""
    named = {name: path for name in ("log", "replay", "image", "video", "final") if (path := getattr(options, name))}
    if piped := [name for name, path in named.items() if is_pipe(path)]:
        raise NearstepError(f"--{piped[0]} -: only -o takes -; name a file")
    files = {f"--{name} {path}": path.resolve() for name, path in named.items()}
    files |= {} if is_pipe(options.output) else {f"-o {options.output}": options.output.resolve()}
    written = {place for name, place in files.items() if name.split()[0] in ("-o", "--log", "--final")}
    for one, other in combinations(files, 2):
        if files[one] == files[other] and files[one] in written:
            raise NearstepError(f"{one} and {other.split()[0]} are one file; give them two names")


def _context(options: Stream, pipe: CausalVideoPipeline, height: int, width: int) -> Any:
    """The video that the stream goes on from, if there is one."""
    if options.video is None:
        return None
    return _ending(options.video, fps=pipe.settings.fps, height=height, width=width, most=pipe.settings.num_frames)


def _ending(path: Path, *, fps: float, height: int, width: int, most: int) -> Any:
    """The last 4n + 1 frames of a video, uint8 [T, H, W, 3], no more than a clip of training had."""
    from nearstep.data.videos import ClipSize, read_ending

    try:
        frames = read_ending(path, ClipSize(frames=1, height=height, width=width, fps=fps), most)
    except NearstepError as error:
        raise NearstepError(f"cannot read the video {path}: {error}") from error
    return frames[(len(frames) - 1) % TEMPORAL_STRIDE :]


@contextmanager
def _finals(path: Path | None, **how: Any) -> Iterator[Callable[[Deferred[Tensor]], None]]:
    """Writes the final pixels [1, T, 3, H, W] that it is told of, in order, as they come; waits for them at its end."""
    if path is None:
        yield lambda _: None
        return
    with growing_mp4(path, **how) as grow, ThreadPoolExecutor(1, thread_name_prefix="nearstep-final") as pool:

        def write(later: Deferred[Tensor], before: Sequence[Future[None]]) -> None:
            for part in before:
                part.result()  # nothing follows what could not be written
            grow(pixels(later.result()[0]))

        writing: list[Future[None]] = []
        try:
            yield lambda later: writing.append(pool.submit(write, later, writing[-1:]))
            if left := sum(not part.done() for part in writing):
                note(f"{path}: the final pixels of {left} chunk{'s' * (left > 1)} are still to come")
            for part in writing:
                part.result()
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C: what has come is in the file


@contextmanager
def _growing(output: Path, *, height: int, width: int, fps: float, comment: str) -> Iterator[Grow]:
    """The video that grows, in a file or in standard output."""
    if not is_pipe(output):
        with growing_mp4(output, height=height, width=width, fps=fps, comment=comment) as grow:
            yield grow
        return
    with standard_output() as file, piped_mp4(file, height=height, width=width, fps=fps, comment=comment) as grow:
        yield grow


def _write(options: Stream, pipe: CausalVideoPipeline, session: Session, count: int, said: Mapping[str, Any]) -> None:
    from tqdm import tqdm

    opening, fps = session.recording.opening, pipe.settings.fps
    size = {"height": opening.height, "width": opening.width}
    shown = {**asdict(opening), **said, "seed": opening.seed}
    comment, finally_shown = (json.dumps(what) for what in (shown, _of_codec(shown)))
    changes, made, pictures, began = dict(options.at), 0, 0, time.perf_counter()
    ended: BaseException | None = None
    with (
        _finals(options.final, fps=fps, comment=finally_shown, **size) as follow,
        _growing(options.output, fps=fps, comment=comment, **size) as grow,
        tqdm(total=count, unit="chunk", disable=None, dynamic_ncols=True) as bar,
    ):
        try:
            for index in range(count):
                if index in changes:
                    session.change(prompt=changes[index])
                if (chunk := next(session, None)) is None:
                    break
                grow(pixels(chunk.video[0]))
                if chunk.later is not None:
                    follow(chunk.later)
                made, pictures = made + 1, pictures + chunk.video.shape[1]
                rate = pictures / (time.perf_counter() - began)
                bar.set_postfix_str(f"{chunk.steps} steps, {rate:.1f} frames/s")
                bar.update()
        except (KeyboardInterrupt, SystemExit, NearstepError) as error:  # SystemExit: of SIGTERM
            if not made:
                raise
            ended = error
        seconds = time.perf_counter() - began
    for path in (options.output, options.final):
        if path and not is_pipe(path):
            print(path)
    tqdm.write(
        f"{made} chunks, {pictures} frames in {seconds:.1f} s, {pictures / seconds / fps:.2f} times real time; "
        f"plan {session.plan}, seed {session.seed}",
        file=sys.stderr,
    )
    if isinstance(ended, NearstepError):
        raise NearstepError(f"{ended}; {options.output} keeps the {made} chunks before")
    if isinstance(ended, SystemExit):
        raise ended
