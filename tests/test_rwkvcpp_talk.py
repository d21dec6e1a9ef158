"""Talking with files of rwkv.cpp: what is read and kept, where a reply ends, and the process that makes it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufy.core.errors import BusyError, Cancelled, SourceError, ToolError
from ggufy.llama.chat.backend import ProcessExited
from ggufy.llama.chat.options import ChatOptions
from ggufy.llama.chat.process import END, LENGTH, STOP
from ggufy.llama.ggml import F32Array
from ggufy.models.chat_format import FORMATS, WORLD
from ggufy.rwkvcpp import convert
from ggufy.rwkvcpp.backend import RAVEN, RwkvcppChat, RwkvcppCompletion, read_model, serve_words
from ggufy.rwkvcpp.engine import Engine
from ggufy.rwkvcpp.reading import CHUNK, Reader
from ggufy.rwkvcpp.replies import Question, Reply
from ggufy.rwkvcpp.sampler import Sampler
from ggufy.rwkvcpp.tokenizer import PILE_ROWS, WORLD_ROWS, TrieTokenizer
from ggufy.service.chat_settings import ChatSettings
from ggufy.service.conversations import Chats
from tests import scripted, tiny
from tests.conftest import ROOT
from tests.reference import reference_data, reference_file
from tests.rwkvcpp_files import Written, write
from tests.test_rwkvcpp_library import compiled

GREEDY = ChatOptions(temperature=0.0, length=64)
MODELS = ("4v0-660K", "5v1-730K", "5v2-730K", "6v0-1m", "7v0-834K")
TOKENIZER = TrieTokenizer("bytes", [b"", *(bytes([byte]) for byte in range(1, 256)), b"\n\n", b""])
EMPTY_LINE, UNUSED = 256, 257


class Speaker:
    """An engine whose state is how many tokens it has read, and which notes what it is given. `says` are the ids that
    it likes most after so many tokens, the dearest first."""

    def __init__(self, says: Callable[[int], Sequence[int]] = lambda count: ()):
        self.n_vocab, self.says = 258, says
        self.given: list[tuple[int, ...]] = []

    def eval(self, tokens: Sequence[int], state: F32Array | None, *, every: bool = False) -> tuple[F32Array, F32Array]:
        self.given.append(tuple(tokens))
        count = len(tokens) + (int(state[0]) if state is not None else 0)
        logits = np.zeros(self.n_vocab, dtype=np.float32)
        for place, token in enumerate(self.says(count)):
            logits[token] = 10 - place
        return logits, np.array([count], dtype=np.float32)


def reader(says: Callable[[int], Sequence[int]] = lambda count: (), **options: int) -> tuple[Reader, Speaker]:
    speaker = Speaker(says)
    return Reader(speaker, **options), speaker  # type: ignore[arg-type]


def said(text: str, start: int) -> Callable[[int], Sequence[int]]:
    """What says this text after so many tokens, and then the end of text."""
    ids = [*TOKENIZER.encode(text), 0]
    return lambda count: [ids[min(count - start, len(ids) - 1)]] if count >= start else []


# ---- what is read


@pytest.mark.fast
def test_what_begins_alike_is_read_once() -> None:
    known, speaker = reader()
    first = known.reach([1, 2, 3])
    assert (first.tokens, int(first.state[0])) == ((1, 2, 3), 3)
    reply = known.after(first, [4])
    known.keep(reply)
    assert known.reach([1, 2, 3, 4, 5, 6]).tokens == (1, 2, 3, 4, 5, 6)
    assert known.reach([1, 2, 3]) is first, "another reply to the same message"
    assert known.reach([1, 2, 3, 7]).tokens == (1, 2, 3, 7)
    assert known.reach([1, 2]).tokens == (1, 2), "there is no way back within a state"
    assert speaker.given == [(1, 2, 3), (4,), (5, 6), (7,), (1, 2)]


@pytest.mark.fast
def test_few_states_are_kept() -> None:
    size = 4 * (258 + 1)
    known, speaker = reader(budget=3 * size)
    for token in range(1, 6):
        known.reach([token])
    known.reach([3])
    known.reach([6])  # for which 4 is forgotten: 3 was used since
    speaker.given.clear()
    for token in (3, 5, 6, 4):
        known.reach([token])
    assert speaker.given == [(4,)]
    narrow, speaker = reader(budget=0)
    for token in (1, 2, 1, 2, 3, 1):
        narrow.reach([token])
    assert speaker.given == [(1,), (2,), (3,), (1,)], "two are kept, whatever their size"


@pytest.mark.fast
def test_reading_can_be_stopped() -> None:
    known, speaker = reader()
    tokens = [1] * (3 * CHUNK)
    with pytest.raises(Cancelled):
        known.reach(tokens, stopped=lambda: len(speaker.given) == 2)
    known.reach(tokens)
    assert list(map(len, speaker.given)) == [CHUNK] * 3, "what was read until then was kept"


# ---- where a reply ends


def made(says: Callable[[int], Sequence[int]], prompt: str = "ab", **options: Any) -> tuple[str, str]:
    """(text, what ended it)."""
    more = {name: options.pop(name) for name in ("not_first",) if name in options}
    known, _ = reader(says)
    question = Question(prompt=prompt, options=ChatOptions(**{"temperature": 0.0, "length": 8} | options), **more)
    reply = Reply(known, TOKENIZER, question)
    return "".join(reply.pieces()), reply.end


@pytest.mark.fast
def test_a_reply_ends() -> None:
    assert made(said("hello", 2)) == ("hello", END)
    assert made(said("", 2)) == ("", END)
    assert made(said("hello world", 2)) == ("hello wo", LENGTH)
    assert made(said("hello", 2), length=5) == ("hello", LENGTH)
    assert made(said("hi\n\nUser: x", 2), stops=("\n\nUs",)) == ("hi", STOP)
    assert made(said("a\n\nb", 2), stops=("\n\nUs",)) == ("a\n\nb", END)
    assert made(said("é", 2), length=1) == ("\ufffd", LENGTH)
    with pytest.raises(SourceError, match="nothing to go on with"):
        made(said("x", 0), prompt="")


@pytest.mark.fast
def test_tokens_that_nobody_trained_never_come() -> None:
    assert made(lambda count: [UNUSED, ord("x"), ord("y")], length=2) == ("xx", LENGTH)


@pytest.mark.fast
def test_a_reply_of_raven_does_not_begin_with_a_new_line() -> None:
    """By the ids of the model's own tokenizer; afterwards, a blank line ends it."""

    def says(count: int) -> list[int]:
        return [EMPTY_LINE, ord("\n"), ord("x")]

    assert made(says, not_first=("\n", "\n\n"), stops=RAVEN.stops) == ("x", STOP)
    assert made(says, stops=RAVEN.stops) == ("", STOP)


@pytest.mark.fast
def test_the_next_turn_reads_what_is_new() -> None:
    prompt, options = "User: a\n\nAs:", ChatOptions(temperature=0.0, stops=("\n\nUser:",))
    known, speaker = reader(said("yes\n\nUser: and", len(TOKENIZER.encode(prompt))))
    assert "".join(Reply(known, TOKENIZER, Question(prompt=prompt, options=options)).pieces()) == "yes"
    speaker.given.clear()
    more = Question(prompt=prompt + "yes\n\nUser: b\n\nAs:", options=options)
    with contextlib.closing(Reply(known, TOKENIZER, more).pieces()) as pieces:
        next(pieces, None)
    assert TOKENIZER.decode(speaker.given[0]) == ": b\n\nAs:"


# ---- how it is talked to


@pytest.mark.fast
@pytest.mark.parametrize(
    ("version", "rows", "name", "chat"),
    [
        ("4", PILE_ROWS, "RWKV-4-Pile-169M", RAVEN),
        ("4", WORLD_ROWS, "RWKV-4-World-0.1B", WORLD),
        ("5.2", WORLD_ROWS, "rwkv7-g1h-named-so", WORLD),
        ("7", WORLD_ROWS, "rwkv7-g1h-0.1b-20260801-ctx8192", FORMATS["g1h"]),
        ("7", WORLD_ROWS, "RWKV-x070-World-0.1B", WORLD),
        ("7", 320, "rwkv7-g1h-0.1b-20260801-ctx8192", WORLD),
    ],
)
def test_its_chat_format(tmp_path: Path, version: str, rows: int, name: str, chat: object) -> None:
    shapes = {part: tuple(tensor.shape) for part, tensor in tiny.weights(version, layers=1, width=64).items()}
    shapes |= {"emb.weight": (rows, 64), "head.weight": (rows, 64)}
    convert.write_skeleton(shapes, tmp_path / f"{name}-FP16.bin", type_name="FP16")
    assert read_model(tmp_path / f"{name}-FP16.bin").chat is chat


@pytest.mark.fast
def test_raven_speaks_as_rwkv_cpp_s_chat_does() -> None:
    turns = [{"role": "user", "content": " a "}, {"role": "assistant", "content": "b"}]
    prompt = RAVEN.prompt([*turns, {"role": "user", "content": "c"}])
    assert prompt == "User: a\n\nAssistant: b\n\nUser: c\n\nAssistant:"
    assert RAVEN.split(" yes.\n\nUser", ended=True) == ("", "yes.")
    assert RAVEN.name not in FORMATS, "no GGUF holds an RWKV-4"


# ---- the process


@pytest.fixture(scope="module", params=["4", "5.2"])
def talker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted.in_rwkvcpp(tmp_path_factory.mktemp(f"talker-{request.param}"), request.param)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that says ababab, for ever."""
    folder = tmp_path_factory.mktemp("endless")
    return scripted.in_rwkvcpp(folder, "4", chain=[b":", b"a", b"b", b"a"])


@pytest.fixture
def start() -> Iterator[Callable[..., RwkvcppChat]]:
    """Starts processes that end with the test."""
    with contextlib.ExitStack() as stack:
        starter = stack.enter_context(ThreadPoolExecutor(1))

        def make(
            model: Path, options: ChatOptions = GREEDY, kind: type[RwkvcppChat] = RwkvcppChat, **words: Any
        ) -> RwkvcppChat:
            extra = serve_words(**words)
            made = kind(read_model(model), options, threads=1, starter=starter, extra=extra)
            stack.callback(made.close)
            return made

        yield make


@pytest.mark.fast
def test_it_replies(start: Callable[..., RwkvcppChat], talker: Path) -> None:
    chat = start(talker)
    pieces = list(chat.say("Hi"))
    assert "".join(pieces) == scripted.REPLY and len(pieces) > 2
    assert chat.end == STOP and chat.speeds is not None and min(chat.speeds) > 0
    pid = chat.pid
    for _ in range(2):  # and again
        assert "".join(chat.say("And?", ["Hi", scripted.REPLY])) == scripted.REPLY
    assert chat.pid == pid
    text = start(talker, ChatOptions(temperature=0.0, length=7), RwkvcppCompletion)
    assert "".join(text.say("User: hi\n\nAssistant:")) == " One.\n\nTwo。\n\nUser:" and text.end == LENGTH
    text = start(talker, ChatOptions(temperature=0.0, stops=("Two",)), RwkvcppCompletion)
    assert "".join(text.say("x:")) == " One.\n\n" and text.end == STOP


@pytest.mark.fast
def test_a_reply_can_be_stopped(start: Callable[..., RwkvcppChat], endless: Path) -> None:
    chat = start(endless, ChatOptions(temperature=0.0, length=1 << 20))
    come: list[str] = []
    for piece in chat.say("Hi", stopped=lambda: len(come) >= 5):
        come.append(piece)
    assert "".join(come).startswith("abab") and chat.alive and chat.end == ""
    assert chat.speeds is not None and min(chat.speeds) > 0
    with contextlib.closing(chat.say("Hi")) as pieces:
        assert next(pieces) == "a"
        with pytest.raises(BusyError):
            next(chat.say("Hi"))
    with contextlib.closing(chat.say("Hi")) as pieces:
        next(pieces)
        chat.interrupt()
        assert len(list(pieces)) < 1 << 20
    pid = chat.pid
    assert pid is not None
    chat.options = ChatOptions(temperature=0.0, length=3)
    assert "".join(chat.say("Hi")) == "aba", "it goes on, with other options"
    chat.close()
    assert not chat.alive and chat.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.fast
def test_a_process_that_ends_says_so(start: Callable[..., RwkvcppChat], endless: Path, tmp_path: Path) -> None:
    chat = start(endless, ChatOptions(temperature=0.0, length=1 << 20))
    with contextlib.closing(chat.say("Hi")) as pieces:
        next(pieces)
        assert chat.pid is not None
        os.kill(chat.pid, signal.SIGKILL)
        with pytest.raises(ToolError, match=r"the process of .*\.bin ended \(.*\): send the message again\."):
            list(pieces)
    assert not chat.alive
    with pytest.raises(ProcessExited):
        next(chat.say("Hi"))
    lonely = tmp_path / endless.name
    lonely.write_bytes(endless.read_bytes())
    with pytest.raises(SourceError, match=r"tokens, neither the Pile's nor World's: give its tokenizer with"):
        next(start(lonely).say("Hi"))
    lonely.write_bytes(endless.read_bytes()[:-100])
    with pytest.raises(SourceError, match="cut off"):
        start(lonely)


@pytest.mark.fast
def test_somebody_s_own_library_replies(start: Callable[..., RwkvcppChat], tmp_path: Path) -> None:
    """By librwkv.c's arithmetic, b is followed by b, and that by the end; our engine cannot load this file."""
    model = write(tmp_path / "m.bin", [Written(b"emb.weight", 0, [64, 5], bytes(1280))])
    tiny.write_vocab(tmp_path / "own.vocab.txt", [b"a", b"b", b"c", b"d"])
    text = start(model, kind=RwkvcppCompletion, library=compiled(tmp_path))
    assert "".join(text.say("b")) == "b" and text.end == END
    with pytest.raises(SourceError):
        next(start(model, kind=RwkvcppCompletion).say("b"))


# ---- on the page


@pytest.fixture
def chats(talker: Path, endless: Path) -> Iterator[Chats]:
    class Nowhere:
        bin = None

    models = {"talker": talker, "endless": endless}
    made = Chats(lambda: Nowhere, lambda who: models, lambda: 1, lambda who: True)  # type: ignore[arg-type, return-value]
    yield made
    made.close()


def ask(chats: Chats, message: str | None, *, model: str = "talker", **settings: Any) -> list[dict[str, str]]:
    wanted = ChatSettings.checked(**{"temperature": 0.0, "length": 64} | settings)
    for _ in chats.say("v", "a", model=model, settings=wanted, message=message):
        pass
    return chats.turns("v", "a", wanted.mode)


@pytest.mark.fast
def test_the_page_talks_with_it(chats: Chats, talker: Path) -> None:
    (talker.parent / "poet.state.bin").write_bytes(b"")
    assert chats.states("talker") == {}, "a state is a GGUF's"
    assert chats.format_of("talker") is WORLD
    assert [turn["content"] for turn in ask(chats, "Hi")] == ["Hi", scripted.REPLY]
    assert [turn["content"] for turn in ask(chats, None)] == ["Hi", scripted.REPLY]
    assert [turn["content"] for turn in ask(chats, "And?")] == ["Hi", scripted.REPLY, "And?", scripted.REPLY]
    assert chats.speeds("v", "a") is not None
    assert len(chats._pool.talkers()) == 1
    assert [turn["content"] for turn in ask(chats, "x:", mode="text", length=1)] == ["x:", " One."]


@pytest.mark.fast
def test_stop_on_the_page(chats: Chats) -> None:
    settings = ChatSettings.checked(temperature=0.0, length=4096)
    replies = chats.say("v", "a", model="endless", settings=settings, message="Hi")
    with contextlib.closing(replies):
        next(replies)
        next(replies)
        chats.stop("v")
        list(replies)
    (_, reply) = chats.turns("v", "a")
    assert reply["content"].startswith("a") and len(reply["content"]) < 4096
    assert all(talker.alive for talker in chats._pool.talkers())


# ---- in the terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Runs a command on a machine without llama.cpp, which these files do not need."""

    def run(*arguments: object, typed: str = "") -> tuple[int, str, str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GGUFY_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "ggufy", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, input=typed.encode(), capture_output=True, timeout=300
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return run


@pytest.mark.fast
def test_complete(terminal: Callable[..., tuple[int, str, str]], talker: Path, tmp_path: Path) -> None:
    assert terminal("complete", talker, "-p", "x:", "-n", 3, "--temp", 0) == (0, " One.\n\nTwo\n", "")
    code, out, _ = terminal("complete", talker, "-p", "x:", "--stop", "\\n\\nUser", "--temp", 0, "--json")
    found = json.loads(out)
    assert (code, found["text"], found["end"]) == (0, " One.\n\nTwo。", "stop")
    assert found["prompt_tps"] > 0 < found["generation_tps"]
    seeded = [
        terminal("complete", talker, "-p", "x", "-n", 9, "--temp", 9, "--top-p", 1, "--seed", n) for n in (1, 1, 2)
    ]
    assert seeded[0] == seeded[1] != seeded[2]
    for option, says in (
        (("--state", tmp_path / "x.bin"), "--state is for GGUF files"),
        (("--library", tmp_path / "x.so"), "the library .* does not exist"),
        (("--tokenizer", tmp_path / "x.json"), "the tokenizer .* does not exist"),
        (("--tokenizer", "world"), "but the tokenizer world has 65530"),
    ):
        code, out, err = terminal("complete", talker, "-p", "x", *option)
        assert code in (1, 2) and not out and re.match(f"ggufy: .*{says}", err), err


@pytest.mark.fast
def test_chat_with_rwkv_cpp_s_commands(terminal: Callable[..., tuple[int, str, str]], talker: Path) -> None:
    typed = "Hello\n+\n+gen x:\n+++\n++\n+reset\n+qa Well?\n+i Do it\n+qq Why\n-temp=3 -top_p=0 Hi\n"
    code, out, err = terminal("chat", talker, "--temp", 0, "-n", 2, "--presence", 0, "--frequency", 0, typed=typed)
    assert (code, err) == (0, "")
    reply, free = "One.\n", " One.\n\n\n"
    instructed = "User:\n"  # which comes after the line's end that an instruction ends in
    assert out == reply + reply + free + "Two。\n\n" * 2 + "\n" + reply + instructed + free + reply
    for typed, says in (("+\n", "no message to reply to again"), ("+++\n", "no text to go on with")):
        code, out, err = terminal("chat", talker, typed=typed)
        assert code == 2 and says in err


# ---- other people's figures


@pytest.mark.fast
@pytest.mark.parametrize("model", MODELS)
def test_the_32_tokens_that_rwkv_cpp_goes_on_with(model: str) -> None:
    reference = reference_data("rwkvcpp/reference/reference.json")
    text = reference["text"]
    tokens = list(text[:128].encode("utf-16-le") if model.startswith("6") else text.encode("ascii"))
    engine = Engine(reference_file(f"rwkvcpp/upstream/tiny-rwkv-{model}-FP32.bin"), threads=1)
    sampler = Sampler(ChatOptions(temperature=0.0))
    try:
        known = Reader(engine)
        place, found = known.reach(tokens), []
        while len(found) < 32:
            found.append(sampler.choose(place.logits, place.tokens))
            place = known.after(place, found[-1:])
    finally:
        engine.close()
    assert found == reference["files"][f"{model}/FP32"]["greedy32"]
