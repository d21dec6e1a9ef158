"""`ggufy serve`: the lines that it prints are run against the real llama-server, and it ends in good order."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import openai
import pytest

from ggufy.cli.parser import build_parser
from ggufy.cli.serve import checked
from ggufy.core.errors import ToolError, UsageError
from ggufy.formats.gguf import read_head
from ggufy.llama import server
from ggufy.llama.chat.options import Model
from ggufy.llama.install import Llama
from ggufy.llama.server import ServeOptions
from ggufy.llama.server_program import NAME, server_program
from ggufy.models.rwkv import CONTEXT_LENGTH
from ggufy.system import resources
from ggufy.system.settings import Settings
from tests import chatty, scripted, tiny
from tests.conftest import Ggufy
from tests.reference import reference_file

STORY = (
    ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. "
    "She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\" Lily was sad "
    "and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\""
)
KEY = "a-key-of-24-letters-0815"


@dataclasses.dataclass
class Served:
    """A server that runs, and the lines that it told to run."""

    process: subprocess.Popen[str]
    said: str

    @property
    def url(self) -> str:
        return self.said.partition(" answers at ")[2].partition(" ")[0]

    @property
    def curl(self) -> str:
        return "curl" + self.said.partition("\ncurl")[2].partition("\n\n")[0]

    @property
    def python(self) -> str:
        return self.said.rpartition("\n\n")[2]

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code and what it said of errors."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


Serve = Callable[..., Served]


@pytest.fixture
def serving(ggufy_environment: dict[str, str]) -> Iterator[Serve]:
    """Starts `ggufy serve` on a free port, as a user would, and waits for its lines."""
    running: list[subprocess.Popen[str]] = []

    def start(model: Path, *words: object, **environment: str) -> Served:
        command = [sys.executable, "-m", "ggufy", "serve", str(model), "--port", "0", "--threads", "1"]
        process = subprocess.Popen(
            [*command, *map(str, words)],
            env=ggufy_environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None and process.stderr is not None
        said = ""
        while "\nprint(" not in said:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said += line
        return Served(process, said)

    yield start
    for process in running:
        process.kill()
        process.communicate()


def asked(program: list[str], text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    return subprocess.run([*program, text], env=kept | environment, capture_output=True, text=True, timeout=120)


def by_curl(served: Served, **environment: str) -> dict[str, Any]:
    done = asked(["bash", "-c"], served.curl, **environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def by_python(served: Served, **environment: str) -> str:
    done = asked([sys.executable, "-c"], served.python, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def children(process: subprocess.Popen[str]) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(word) for word in text.split()]


# ---- with the real server


@pytest.mark.tools
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_lines_for_curl_and_python_work(serving: Serve, tmp_path: Path, number: signal.Signals) -> None:
    served = serving(scripted.converted_thinker(tmp_path))
    (answer,) = by_curl(served)["choices"]
    assert (answer["message"]["content"], answer["finish_reason"]) == (f"\n{scripted.ANSWER}", "stop")
    assert by_python(served) == f"\n{scripted.ANSWER}\n"
    (child,) = children(served.process)
    assert served.end(number) == (0, "")
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.tools
def test_the_documented_batch_runs(serving: Serve, tmp_path: Path) -> None:
    """The lines of docs/transformers.md, with the address of this server in place of theirs; its model has a path that
    is not whole, as people type it."""
    document = (Path(__file__).parent.parent / "docs" / "transformers.md").read_text(encoding="utf-8")
    lines = document.partition("<!-- run: tests/test_serve.py -->\n```python\n")[2].partition("```")[0]
    served = serving(Path(os.path.relpath(scripted.converted_thinker(tmp_path))), "--parallel", 4)
    done = asked([sys.executable, "-c"], lines.replace("http://127.0.0.1:8080/v1", served.url))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("-> ") == 4
    assert done.stdout.count(scripted.ANSWER) == 4


@pytest.mark.tools
def test_thinking_and_stops_of_an_rwkv(serving: Serve, tmp_path: Path) -> None:
    """A request may think where the server does not; a reply stops at the token, and before the next question."""
    served = serving(scripted.converted_thinker(tmp_path), "--parallel", 2)
    client = openai.OpenAI(base_url=served.url, api_key="none")
    (model,) = client.models.list().data
    assert model.id == f"{scripted.NAME}-F32"
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    for extra, thought in ((None, ""), (thinking, scripted.THOUGHT)):
        answer = client.chat.completions.create(
            model=model.id, messages=[{"role": "user", "content": "Hi"}], temperature=0, extra_body=extra
        )
        said = answer.choices[0].message
        assert (said.content or "").strip() == scripted.ANSWER
        assert (getattr(said, "reasoning_content", None) or "").strip() == thought
    pieces = client.chat.completions.create(
        model=model.id, messages=[{"role": "user", "content": "Hi"}], temperature=0, stream=True
    )
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces).strip() == scripted.ANSWER


@pytest.mark.tools
def test_a_reply_stops_before_the_next_question(serving: Serve, tmp_path: Path) -> None:
    served = serving(scripted.converted(tmp_path))
    client = openai.OpenAI(base_url=served.url, api_key="none")
    answer = client.chat.completions.create(
        model="any", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=50
    )
    assert answer.choices[0].message.content == f" {scripted.REPLY}"
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.tools
@pytest.mark.parametrize("by_file", [True, False])
def test_nobody_is_let_in_without_the_key(serving: Serve, tmp_path: Path, by_file: bool) -> None:
    model, keys = chatty.write(tmp_path / "m.gguf"), tmp_path / "my keys"
    keys.write_text(f"{KEY}\nanother\n")
    environment = {} if by_file else {"GGUFY_API_KEY": KEY}
    served = serving(model, *(["--api-key-file", keys] if by_file else []), **environment)
    assert KEY not in served.said
    (child,) = children(served.process)
    assert KEY not in Path(f"/proc/{child}/cmdline").read_text()
    messages = [{"role": "user", "content": "Hi"}]
    for key in ("none", f"{KEY}-not"):
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=served.url, api_key=key).chat.completions.create(
                model="m",
                messages=messages,  # type: ignore[arg-type]
            )
    assert by_curl(served, **environment)["choices"]
    assert by_python(served, **environment)


@pytest.mark.tools
def test_a_model_without_a_template_goes_on_with_a_text(serving: Serve, tmp_path: Path) -> None:
    served = serving(chatty.write(tmp_path / "it's.gguf", ""))
    assert "It has no chat template: ask it to go on with a text.\n" in served.said
    assert by_curl(served)["choices"][0]["text"]
    assert by_python(served)


@pytest.mark.tools
def test_nothing_but_the_api_is_there(serving: Serve, tmp_path: Path) -> None:
    """No page, no list of what others ask; and a page from elsewhere that a browser shows reads no answer."""
    served = serving(chatty.write(tmp_path / "m.gguf"))
    client = openai.OpenAI(base_url=served.url, api_key="none")
    for path in ("/", "/slots", "/metrics"):
        with pytest.raises(openai.APIStatusError):
            client.with_options(base_url=served.url.removesuffix("/v1"), max_retries=0).get(path, cast_to=object)
    origin = {"Origin": "https://example.com"}
    answer = client.models.with_raw_response.list(extra_headers=origin)
    assert answer.headers.get("access-control-allow-origin") in (None, "")


@pytest.mark.tools
def test_a_story_of_a_trained_llama(serving: Serve, tmp_path: Path) -> None:
    """Letter for letter the text that llama2.c gives and tests for."""
    served = serving(stories(tmp_path / "stories260K.gguf"))
    client = openai.OpenAI(base_url=served.url, api_key="none")
    answer = client.completions.create(model="any", prompt="Once upon a time", temperature=0, max_tokens=200)
    assert answer.choices[0].text.startswith(STORY)


@pytest.mark.tools
def test_a_server_that_is_killed_is_told(serving: Serve, tmp_path: Path) -> None:
    served = serving(chatty.write(tmp_path / "m.gguf"))
    os.kill(children(served.process)[0], signal.SIGKILL)
    _, errors = served.process.communicate(timeout=60)
    assert served.process.returncode == 1
    assert errors.startswith("ggufy: llama-server cannot serve m.gguf: ") and errors.count("\n") == 1


@pytest.mark.tools
def test_a_port_that_is_taken(ggufy: Ggufy, tmp_path: Path) -> None:
    model = chatty.write(tmp_path / "m.gguf")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = ggufy("serve", model, "--port", port)
    assert done.code == 2 and done.out == ""
    said = f"ggufy: nothing can listen on 127.0.0.1, port {port} (Address already in use): choose another --port or"
    assert done.err.startswith(said)


@pytest.mark.tools
def test_a_model_that_cannot_be_loaded(ggufy: Ggufy, tmp_path: Path) -> None:
    junk, other = tmp_path / "junk.gguf", tmp_path / "other.gguf"
    junk.write_bytes(b"GGUF" + bytes(100))
    assert "is not a sound GGUF file" in ggufy("serve", junk, "--port", 0).err
    writer = gguf.GGUFWriter(other, "no-such-architecture")
    writer.add_tensor("x.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = ggufy("serve", other, "--port", 0)
    assert done.code == 1 and done.err.count("\n") == 1
    assert done.err.startswith("ggufy: llama-server cannot serve other.gguf: ") and "no-such-architecture" in done.err


@pytest.mark.tools
def test_the_program_is_linked_when_it_is_first_wanted(llama: Llama, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for file in llama.bin.iterdir():
        if file.name != NAME:
            (folder / file.name).symlink_to(file)
    environment = resources.child_environment(threads=1, home=tmp_path)
    mine = dataclasses.replace(llama, bin=folder)
    program = server_program(mine, environment)
    assert program == folder / NAME and not list(folder.glob("*.part"))
    done = subprocess.run([program, "--version"], env=environment, capture_output=True, text=True, timeout=60)
    assert llama.commit[:7] in done.stdout + done.stderr
    made = program.stat().st_mtime_ns
    assert server_program(mine, environment).stat().st_mtime_ns == made
    next(folder.glob("libllama-server-impl.*")).unlink()
    program.unlink()
    with pytest.raises(ToolError, match="has no llama-server: build that target too"):
        server_program(mine, environment)


# ---- options


def options(*words: str, **environment: str) -> ServeOptions:
    args = build_parser().parse_args(["serve", "m.gguf", *words])
    return checked(args, Settings.from_env({"HOME": "/root", **environment}))


@pytest.mark.fast
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com"])
def test_others_reach_it_with_a_key_only(host: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"whoever reaches {host} could use the model: give keys with --api-key-file"):
        options("--host", host)
    keys = tmp_path / "keys"
    keys.write_text("abc\n")
    assert options("--host", host, "--api-key-file", str(keys)).key_file == keys
    assert options("--host", host, GGUFY_API_KEY=KEY).host == host
    assert options("--host", host, GGUFY_TRUSTED_NETWORK="1").host == host


@pytest.mark.fast
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_reaches_it(host: str) -> None:
    assert options("--host", host).host == host


@pytest.mark.fast
def test_options_that_make_no_sense(tmp_path: Path) -> None:
    for words in (["--port", "65536"], ["--context", "-1"], ["--parallel", "0"], ["--threads", "0"]):
        with pytest.raises(UsageError, match=f"{words[0]} must be a number from"):
            options(*words)
    with pytest.raises(UsageError, match="cannot be read as a list of keys"):
        options("--api-key-file", str(tmp_path / "none"))
    empty = tmp_path / "keys"
    for text in ("", "\n", "# mine\nabc\n"):  # the server would let everybody in, or the printed lines would not work
        empty.write_text(text)
        with pytest.raises(UsageError, match="does not begin with a key"):
            options("--api-key-file", str(empty))


@pytest.mark.fast
def test_contexts(tmp_path: Path) -> None:
    llama, rwkv = chatty.write(tmp_path / "m.gguf"), tiny.converted(tmp_path)
    for path, asked_for, tokens in ((llama, 0, 4096), (llama, 100, 100), (rwkv, 0, 0), (rwkv, 100, 100)):
        wish = ServeOptions(threads=1, context=asked_for, parallel=3)
        model, head = Model.read(path), read_head(path)
        assert server.context_of(model, head, wish) == tokens
        command = server.server_command(Path("s"), model, head, wish, tmp_path)
        assert (command[command.index("-c") + 1] == str(3 * tokens)) if tokens else "-c" not in command
    assert CONTEXT_LENGTH >= 1 << 20


@pytest.mark.fast
def test_memory_that_does_not_suffice(tmp_path: Path) -> None:
    path = chatty.write(tmp_path / "m.gguf")
    model, head, wish = Model.read(path), read_head(path), ServeOptions(threads=1, context=1000)
    assert server.cache_bytes(head, 1000) == 1000 * 2 * 2 * 32  # keys and values, two bytes, one layer of 32
    server.check_memory(model, head, wish, lambda: 500_000_000)
    with pytest.raises(UsageError, match=r"m\.gguf needs about 40\d MB of memory, and 100 MB are free: choose a sm"):
        server.check_memory(model, head, wish, lambda: 100_000_000)
    with pytest.raises(UsageError, match=r"needs about 1\.\d+ GB"):
        server.check_memory(model, head, dataclasses.replace(wish, context=10**7), lambda: 500_000_000)


# ---- the trained Llama of the reference data


def stories(path: Path) -> Path:
    """Writes stories260K as GGUF, as llama.cpp's converter does: the rows of q and k in its order."""
    folder = reference_file("models/stories260K-hf")
    config = json.loads((folder / "config.json").read_text())
    pieces = list(_pieces((folder / "tokenizer.model").read_bytes()))
    heads, kept, layers = (config[f"num_{name}"] for name in ("attention_heads", "key_value_heads", "hidden_layers"))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kept)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece for piece, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for name, values in _weights(folder / "model.safetensors"):
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            count = heads if "q_proj" in name else kept
            rows = values.reshape(count, 2, values.shape[0] // count // 2, values.shape[1])
            values = np.ascontiguousarray(rows.swapaxes(1, 2).reshape(values.shape))
        new = names.get_name(name, try_suffixes=(".weight",))
        assert new
        writer.add_tensor(new, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _weights(path: Path) -> Iterator[tuple[str, Any]]:
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, last = (start + offset for offset in entry["data_offsets"])
            yield name, np.frombuffer(data[first:last], dtype=np.float32).reshape(entry["shape"])


def _pieces(model: bytes) -> Iterator[tuple[str, float, int]]:
    """Text, score and type of each piece of a SentencePiece model: field 1, in protobuf's encoding."""
    for number, value in _fields(model):
        if number == 1:
            fields = dict(_fields(value))
            yield fields[1].decode(), struct.unpack("<f", fields[2])[0], fields.get(3, 1)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place, value, shift = place + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while place < len(message):
        tag = varint()
        match tag & 7:
            case 0:
                yield tag >> 3, varint()
                continue
            case 1 | 5 as kind:
                size = 8 if kind == 1 else 4
            case 2:
                size = varint()
        yield tag >> 3, message[place : place + size]
        place += size
