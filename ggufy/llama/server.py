"""llama-server: its command, whether it fits in memory, and one that runs until it is stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.core.errors import Cancelled, ToolError, UsageError
from ggufy.core.messages import Message
from ggufy.core.words import human_size
from ggufy.formats.gguf import GgufHead
from ggufy.llama.chat.options import OTHER_CONTEXT, Model
from ggufy.llama.chat.pool import MARGIN
from ggufy.llama.tools import failure_reason
from ggufy.models.chat_format import OFF, ON
from ggufy.system import child_process

_SAMPLING = {
    "temperature": "--temp",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
}
_GRACE_S = 5.0  # for replies that are being made when it is to end
_LEAST_VERBOSE = "2"  # warnings and errors; what is asked stays out of the log


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a model is served."""

    host: str = "127.0.0.1"
    port: int = 8080
    threads: int
    context: int = 0  # tokens of one conversation; 0: RWKV has no limit, others get some thousand
    parallel: int = 1  # conversations at once
    think: bool = False  # where a request does not say
    key_file: Path | None = None  # with the keys that a request has to give one of


# ---- the command


def server_command(tool: Path, model: Model, head: GgufHead, options: ServeOptions, folder: Path) -> list[str]:
    """llama-server for `model`, whose template is written into `folder`.

    No page, no list of what others ask, and no store of old prompts, so that memory is the model's and that of so many
    conversations. A page that somebody's browser shows may ask a server on the same machine, so only pages of this
    machine are answered. Requests may say otherwise than the sampling and the thinking that are given here.
    """
    command = [str(tool), "-m", str(model.path), "--alias", model.path.stem, "--no-ui", "--no-slots", "--offline"]
    command += ["--host", options.host, "--port", str(options.port), "-t", str(options.threads)]
    command += ["--cors-origins", "localhost", "-lv", _LEAST_VERBOSE]
    command += ["-np", str(options.parallel), "--cache-ram", "0", "-ctxcp", "4"]
    if options.key_file is not None:
        command += ["--api-key-file", str(options.key_file.absolute())]
    if context := context_of(model, head, options):
        command += ["-c", str(context * options.parallel)]
    command += [word for key, value in model.said for word in ("--override-kv", f"{key}=int:{value}")]
    return command + _conversation(model, options, folder)


def context_of(model: Model, head: GgufHead, options: ServeOptions) -> int:
    """Tokens of one conversation; 0: as many as there may be."""
    if options.context or model.chat:
        return options.context
    trained = _number(head, "context_length")
    return min(trained, OTHER_CONTEXT) if trained else OTHER_CONTEXT


def _conversation(model: Model, options: ServeOptions, folder: Path) -> list[str]:
    """Template, stops, thinking and sampling; those of an RWKV come from its format, whoever converted it."""
    words = ["--jinja", "--reasoning", "on" if options.think else "off"]
    if model.chat is None:
        return words
    template = folder / "template.jinja"
    template.write_text(model.chat.template, encoding="utf-8", newline="\n")
    words += ["--chat-template-file", str(template), "--no-escape"]
    words += [word for stop in model.chat.stops for word in ("-r", stop)]
    advised = model.chat.sampling[ON if options.think and model.chat.thinks else OFF]
    return words + [word for name, value in advised.items() for word in (_SAMPLING[name], f"{value:g}")]


# ---- memory


def check_memory(model: Model, head: GgufHead, options: ServeOptions, available: Callable[[], int]) -> None:
    """Raises UsageError when weights and contexts do not fit."""
    size = model.path.stat().st_size
    need = size + size // 10 + MARGIN + cache_bytes(head, context_of(model, head, options) * options.parallel)
    if available() < need:
        raise UsageError(
            "{name} needs about {needed} of memory, and {free} are free: choose a smaller quant or --context, or try "
            "again when less is running.",
            name=model.path.name,
            needed=human_size(need),
            free=human_size(available()),
        )


def cache_bytes(head: GgufHead, context: int) -> int:
    """Of keys and values in F16 for so many tokens: 2 bytes · 2 · layers · heads that keep some · size of a head."""
    layers, width, heads = (_number(head, key) for key in ("block_count", "embedding_length", "attention.head_count"))
    if not heads:
        return 0
    each = _number(head, "attention.key_length") or width // heads
    return 4 * context * layers * (_number(head, "attention.head_count_kv") or heads) * each


def _number(head: GgufHead, key: str) -> int:
    """A number of the metadata under the architecture's name; the largest of a list; 0 if it is neither."""
    value = head.metadata.get(f"{head.metadata.get('general.architecture')}.{key}")
    values = value if isinstance(value, list) else [value]
    return max((one for one in values if isinstance(one, int)), default=0)


# ---- a server that runs


@dataclass(frozen=True)
class Server:
    """A llama-server that has loaded its model."""

    process: subprocess.Popen[bytes]
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{_in_url(self.host)}:{self.port}"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def post(self, path: str, body: object) -> dict[str, Any]:
        """The answer to a request, also to one that is refused, which then has the key `error`."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            return dict(json.loads(connection.getresponse().read()))


@contextlib.contextmanager
def running_server(
    command: Sequence[str],
    *,
    options: ServeOptions,
    environment: Mapping[str, str],
    folder: Path,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Server]:
    """A server that is ready, until the block ends; its log goes to `folder`.

    Raises UsageError if the port cannot be had, ToolError if the model cannot be loaded, Cancelled.
    """
    check_port(options.host, options.port)
    with (folder / "server.log").open("w+b") as log:
        process = child_process.start(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            server = Server(process, _reached(options.host), options.port)
            while not _ready(server):
                if process.poll() is not None:
                    raise ended(process, folder, Path(command[command.index("-m") + 1]).name)
                if stopped():
                    raise Cancelled("the server was stopped.")
                time.sleep(0.1)
            yield server
        finally:
            child_process.stop(process, grace_s=_GRACE_S)


def ended(process: subprocess.Popen[bytes], folder: Path, name: str) -> ToolError:
    """Why a server has ended by itself."""
    with (folder / "server.log").open("rb") as log:
        log.seek(max(0, log.seek(0, 2) - 100_000))
        text = log.read().decode("utf-8", errors="replace")
    reason = failure_reason(text) if text.strip() else Message("exit code {code}", code=process.returncode)
    return ToolError("llama-server cannot serve {name}: {reason}", name=name, reason=reason)


def check_port(host: str, port: int) -> None:
    """Raises UsageError if nobody can listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as servers do: an old connection is no matter
            probe.bind(address)
    except OSError as error:
        raise UsageError(
            "nothing can listen on {host}, port {port} ({reason}): choose another --port or --host.",
            host=host,
            port=port,
            reason=error.strerror or error,
        ) from error


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _ready(server: Server) -> bool:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def _reached(host: str) -> str:
    """The address that this machine reaches a server at which listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
