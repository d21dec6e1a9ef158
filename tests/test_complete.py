"""Plain completion and chat in the terminal: what comes, where it ends, what becomes of what people type."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufy.core.errors import SourceError, UsageError
from ggufy.formats.session import SUFFIX
from ggufy.llama.chat.messages import StopTexts, conversation_prompt
from ggufy.llama.chat.options import ChatOptions, Model, completion_command
from ggufy.llama.install import Llama
from ggufy.llama.states import save_state
from ggufy.models.chat_format import WORLD
from ggufy.models.convert import convert
from ggufy.models.tuned_state import read_tuned_state
from ggufy.service.access import STRANGER, Visitor
from ggufy.service.chat_settings import ChatSettings
from ggufy.service.conversations import Chats
from tests import scripted, tiny
from tests.conftest import ROOT, Ggufy
from tests.test_state import states_of

# What the scripted model makes of any text that ends in a colon, for ever.
TURN = " One.\n\nTwo。\n\nUser:"


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted.converted(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="module")
def dreamer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokens come by chance."""
    return tiny.converted(tmp_path_factory.mktemp("dreamer"), "7")


# ---- stops


@pytest.mark.fast
@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("hello", (), "hello"),
        ("hello", ("",), "hello"),
        ("hello", ("x",), "hello"),
        ("hello", ("l",), "he"),
        ("hello", ("lo", "ll"), "he"),
        ("hello", ("hello!",), "hello"),
        ("\n\nUse\n\nUser: hi", ("\n\nUser:",), "\n\nUse"),
        ("aaab", ("aab",), "a"),
        ("中文。\n\nUser:", ("\n\nUser:", "文章"), "中文。"),
    ],
)
def test_a_text_ends_before_a_stop(text: str, stops: tuple[str, ...], shown: str, size: int) -> None:
    filtered, seen = StopTexts(stops), ""
    for start in range(0, len(text), size):
        piece, found = filtered.feed(text[start : start + size])
        seen += piece
        assert shown.startswith(seen)
        if found:
            break
    else:
        seen += filtered.rest()
    assert seen == shown


# ---- complete


@pytest.mark.fast
def test_texts_and_states_travel_in_files(tmp_path: Path) -> None:
    """A text is no word of the command, and a state is opened for reading alone."""
    model = Model(path=tmp_path / "m.gguf", chat=WORLD)
    options = ChatOptions(top_k=40, repeat=1.2, seed=7, state=tmp_path / "s.bin", stops=("--help",))
    text = "--help\n" * 3
    command = completion_command(tmp_path / "tool", model, options, threads=1, folder=tmp_path, text=text)
    assert (tmp_path / "prompt.txt").read_text(encoding="utf-8") == text + "\n"
    assert not any("--help" in word for word in command)
    assert command[-3:] == ["--prompt-cache", str(tmp_path / "s.bin"), "--prompt-cache-ro"]
    assert {"--top-k": "40", "-s": "7", "--repeat-penalty": "1.2"}.items() <= dict(
        zip(command, command[1:], strict=False)
    ).items()
    assert "penalties;top_k;top_p;temperature" in command


@pytest.mark.tools
def test_a_text_goes_on(ggufy: Ggufy, talker: Path, tmp_path: Path) -> None:
    done = ggufy("complete", talker, "-p", "User: hi\\n\\nAssistant:", "-n", 7)
    assert (done.code, done.out, done.err) == (0, TURN + "\n", "")
    done = ggufy("complete", talker, "-p", "Assistant:", "-n", 7, "--json")
    found = json.loads(done.out)
    assert (found["text"], found["end"]) == (TURN, "length")
    assert found["prompt_tps"] > 0 < found["generation_tps"]
    done = ggufy("complete", talker, "-p", "Assistant:", "--stop", "Nothing", "--stop", "\\n\\nUser", "--json")
    assert json.loads(done.out)["text"] == TURN.removesuffix("\n\nUser:")
    assert json.loads(done.out)["end"] == "stop"
    # a file is taken as it is; the newline at its end is part of the text
    for content, out in (("x:", " One."), ("x:\\n", None)):
        (tmp_path / "prompt").write_text(content, encoding="utf-8")
        done = ggufy("complete", talker, "--file", tmp_path / "prompt", "-n", 1)
        assert done.code == 0 and (done.out == out + "\n" if out else not done.out.startswith(" One."))


@pytest.mark.tools
def test_a_seed_gives_the_same_text_again(ggufy: Ggufy, dreamer: Path) -> None:
    def text(*arguments: object) -> str:
        done = ggufy("complete", dreamer, "-p", "ab", "-n", 24, "--temp", 2, "--top-p", 1, *arguments)
        assert done.code == 0, done.err
        return str(done.out)

    assert text("--seed", 3) == text("--seed", 3) != text("--seed", 4)
    assert text("--seed", 3, "--top-k", 1) == text("--seed", 4, "--top-k", 1) == text("--temp", 0)
    assert text("--temp", 0, "--frequency", 2, "--presence", 2) != text("--temp", 0)
    assert text("--temp", 0, "--repeat-penalty", 5) != text("--temp", 0)


@pytest.mark.tools
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-p", "x", "-n", "0"), "--length must be a number from 1 to"),
        (("-p", "x", "--temp", "nan"), "--temp must be a number"),
        (("-p", "x", "--top-p", "1.5"), "--top-p must be a number from 0.0 to 1.0"),
        (("-p", "x", "--seed", "-1"), "--seed must be a number"),
        (("-p", ""), "there is no text to continue"),
        (("--file", "/nowhere/x"), "/nowhere/x cannot be read"),
        ((), "one of the arguments"),
        (("-p", "x", "--file", "x"), "not allowed with"),
    ],
)
def test_what_cannot_be_asked_for(ggufy: Ggufy, dreamer: Path, arguments: tuple[str, ...], said: str) -> None:
    done = ggufy("complete", dreamer, *arguments)
    assert done.code == 2 and said in done.err and not done.out


@pytest.mark.tools
def test_what_is_no_model(ggufy: Ggufy, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    for command in (("complete", tmp_path / "x.gguf", "-p", "x"), ("chat", tmp_path / "x.gguf")):
        done = ggufy(*command)
        assert done.code == 1 and "is not a sound GGUF file" in done.err and len(done.err.splitlines()) == 1


@pytest.mark.tools
def test_ctrl_c_ends_a_completion(ggufy_environment: dict[str, str], talker: Path) -> None:
    command = [sys.executable, "-m", "ggufy", "complete", str(talker), "-p", "x:", "-n", "1000000"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ggufy_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )  # without a buffer, which `communicate` would not know of
    assert process.stdout is not None
    begun = b""
    while len(begun) < len(TURN):
        begun += process.stdout.read(100)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err == b"ggufy: stopped.\n"
    said = (begun + rest).decode("utf-8")
    assert said.startswith(TURN) and said.endswith("\n")


# ---- chat


@pytest.mark.fast
def test_a_conversation_is_written_out() -> None:
    said = ["Hi\r\n", "Hello.", " And\nyou? "]
    assert conversation_prompt(said, chat=WORLD, system=" Be brief. ") == (
        "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello.\n\nUser: And\nyou?\n\nAssistant:"
    )
    assert conversation_prompt(["x"], chat=WORLD) == "User: x\n\nAssistant:"


def talk(environment: dict[str, str], typed: str, *arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "ggufy", "chat", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, input=typed.encode(), capture_output=True, timeout=300)
    return done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")


@pytest.mark.tools
def test_a_conversation(ggufy_environment: dict[str, str], talker: Path) -> None:
    typed = "Hello\n\n/exit\\\n/read /etc/hostname\nlast one without an end"
    assert talk(ggufy_environment, typed, talker) == (0, (scripted.REPLY + "\n") * 3, "")


@pytest.mark.tools
def test_a_conversation_that_begins_with_a_state(
    llama: Llama, ggufy_environment: dict[str, str], talker: Path, tmp_path: Path
) -> None:
    tensors = states_of("7", layers=1, heads=1)
    session = tmp_path / f"poet{SUFFIX}"
    state = read_tuned_state(tiny.save(tmp_path / "poet.pth", tensors))
    save_state(state, "poet.pth", talker, session, llama)
    kept = session.read_bytes()
    for file in (session, tmp_path / "poet.pth"):
        found = talk(ggufy_environment, "Hello\nAgain\n", talker, "--state", file, "--system", "Be brief.")
        assert found == (0, (scripted.REPLY + "\n") * 2, "")
    assert session.read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["poet.pth", session.name]


@pytest.mark.tools
@pytest.mark.parametrize("state", [False, True])
def test_ctrl_c_ends_a_reply_and_then_the_conversation(
    ggufy_environment: dict[str, str], tmp_path: Path, state: bool
) -> None:
    """On a terminal, which gets none of the control characters in a model's text."""
    source, vocab = scripted.checkpoint(tmp_path, [b":", b"a", b"\x1b", b"a"])  # for ever
    model = tmp_path / "endless.gguf"
    convert(source, model, outtype="f32", vocab=vocab)
    options: list[object] = ["-n", 1_000_000, "--presence", 0, "--frequency", 0]
    if state:
        options += ["--state", tiny.save(tmp_path / "poet.pth", states_of("7", layers=1, heads=1))]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ggufy", "chat", str(model), *map(str, options)],
        cwd=ROOT,
        env=ggufy_environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            seen = seen[-100:] + os.read(ours, 65536)
            assert b"\x1b" not in seen

    until(b"\n> ")
    os.write(ours, b"Hello\n")
    until(b"> Hello\r\naaaa")
    seen = b""
    process.send_signal(signal.SIGINT)
    until(b"\n> ")
    os.write(ours, b"\n")  # nothing is said
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    os.close(ours)


# ---- the chat tab


@pytest.fixture
def chats(llama: Llama, talker: Path, tmp_path: Path) -> Iterator[Chats]:
    """Of a page whose owner has put a state beside a model."""
    model = tmp_path / "talker.gguf"
    shutil.copyfile(talker, model)
    tiny.save(tmp_path / "poet.pth", states_of("7", layers=1, heads=1))
    save_state(read_tuned_state(tmp_path / "poet.pth"), "poet.pth", model, tmp_path / f"poet{SUFFIX}", llama)
    (tmp_path / f"broken{SUFFIX}").write_bytes(b"x" * 100)
    (tmp_path / f"half{SUFFIX}.part").write_bytes(b"")
    made = Chats(lambda: llama, lambda who: {"talker": model}, lambda: 1, lambda who: who.name == "owner")
    yield made
    made.close()


OWNER = Visitor(name="owner")


@pytest.mark.tools
def test_a_state_beside_a_model_is_its_owner_s(chats: Chats, tmp_path: Path) -> None:
    assert list(chats.states("talker", OWNER)) == [f"broken{SUFFIX}", f"poet{SUFFIX}"]
    assert chats.states("talker") == chats.states("gone", OWNER) == chats.states(None, OWNER) == {}
    for who, name in ((STRANGER, f"poet{SUFFIX}"), (OWNER, "../poet.state.bin"), (OWNER, "poet.pth")):
        settings = ChatSettings.checked(state=name)
        with pytest.raises(UsageError, match="does not lie beside talker"):
            next(iter(chats.say("v", "a", model="talker", settings=settings, message="Hi", who=who)))
    with pytest.raises(UsageError):
        ChatSettings.checked(state=["x"])
    settings = ChatSettings.checked(state=f"broken{SUFFIX}")
    with pytest.raises(SourceError, match="no state that llama.cpp can begin from"):
        list(chats.say("v", "a", model="talker", settings=settings, message="Hi", who=OWNER))


@pytest.mark.tools
def test_a_reply_on_the_page_begins_from_the_state(chats: Chats, tmp_path: Path) -> None:
    session = tmp_path / f"poet{SUFFIX}"
    kept = session.read_bytes(), session.stat().st_mtime_ns
    settings = ChatSettings.checked(state=session.name, temperature=0.0)
    for message in ("Hello", "Again"):
        for _ in chats.say("v", "a", model="talker", settings=settings, message=message, who=OWNER):
            pass
    assert [turn["content"] for turn in chats.turns("v", "a")] == ["Hello", scripted.REPLY, "Again", scripted.REPLY]
    settings = ChatSettings.checked(state=session.name, mode="text", length=7, temperature=0.0)
    for _ in chats.say("v", "b", model="talker", settings=settings, message="x:", who=OWNER):
        pass
    assert chats.turns("v", "b", "text")[-1]["content"] == TURN
    assert (session.read_bytes(), session.stat().st_mtime_ns) == kept
