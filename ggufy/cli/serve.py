"""`python -m ggufy serve MODEL.gguf`: llama.cpp's server with an OpenAI API, until Ctrl-C."""

from __future__ import annotations

import argparse
import ipaddress
import json
import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ggufy.cli.terminal import stoppable
from ggufy.core.errors import UsageError
from ggufy.formats.gguf import read_head
from ggufy.llama import server
from ggufy.llama.chat.options import Model
from ggufy.llama.install import Llama
from ggufy.llama.server import ServeOptions, Server
from ggufy.llama.server_program import server_program
from ggufy.models.rendering import KEY
from ggufy.system import resources
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path

_QUESTION = "Write one sentence about rivers."
_POLL_S = 0.2


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.add_argument("model", metavar="MODEL.gguf", type=user_path)
    known = ServeOptions(threads=1)
    parser.add_argument("--host", default=known.host, metavar="ADDRESS", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=known.port, metavar="N", help="port, 0: a free one (%(default)s)")
    parser.add_argument(
        "--api-key-file", type=user_path, metavar="FILE", help="keys that are let in, one a line (GGUFY_API_KEY)"
    )
    parser.add_argument(
        "--context", type=int, default=0, metavar="N", help="tokens of a conversation (RWKV: no limit; others: 4096)"
    )
    parser.add_argument(
        "--parallel", type=int, default=known.parallel, metavar="N", help="conversations at once (%(default)s)"
    )
    parser.add_argument("--think", action="store_true", help="think where a request does not say, if it can")
    parser.add_argument("--threads", type=int, metavar="N", help="threads (one less than allowed)")


def run(args: argparse.Namespace, settings: Settings, get_llama: Callable[[Settings], Llama]) -> int:
    """Serves until it is stopped; gives the exit code."""
    options = checked(args, settings)
    model, head = Model.read(args.model), read_head(args.model)
    server.check_port(options.host, options.port)
    server.check_memory(model, head, options, resources.memory_available)
    llama = get_llama(settings)
    with stoppable() as stopped, tempfile.TemporaryDirectory(prefix="ggufy-serve-") as place:
        folder = Path(place)
        environment = resources.child_environment(threads=options.threads, home=folder)
        program = server_program(llama, environment)
        if settings.api_key:
            environment["LLAMA_API_KEY"] = settings.api_key
        command = server.server_command(program, model, head, options, folder)
        with server.running_server(
            command, options=options, environment=environment, folder=folder, stopped=stopped.is_set
        ) as running:
            template = model.chat is not None or KEY in head.metadata
            print(how_to_ask(running, model, options, key=bool(settings.api_key), template=template), flush=True)
            while not stopped.is_set():
                if not running.alive:
                    raise server.ended(running.process, folder, args.model.name)
                time.sleep(_POLL_S)
    return 0


def checked(args: argparse.Namespace, settings: Settings) -> ServeOptions:
    """The options, if they make sense. Raises UsageError."""
    limits = {"port": (0, 65_535), "context": (0, 1 << 24), "parallel": (1, 256), "threads": (1, 4096)}
    for name, (low, high) in limits.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise UsageError("{name} must be a number from {low} to {high}.", name=f"--{name}", low=low, high=high)
    if args.api_key_file is not None:
        _check_keys(args.api_key_file)
    if not (_is_loopback(args.host) or args.api_key_file or settings.api_key or settings.trusted_network):
        raise UsageError(
            "whoever reaches {host} could use the model: give keys with --api-key-file or GGUFY_API_KEY, or set "
            "GGUFY_TRUSTED_NETWORK=1.",
            host=args.host,
        )
    return ServeOptions(
        host=args.host,
        port=args.port or server.free_port(),
        threads=resources.tool_threads(args.threads, settings.threads),
        context=args.context,
        parallel=args.parallel,
        think=args.think,
        key_file=args.api_key_file,
    )


def _check_keys(path: Path) -> None:
    """llama-server lets everybody in if its file has no key."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "{path} cannot be read as a list of keys ({reason}): check the path.", path=path, reason=error
        ) from error
    if not lines or not lines[0].strip() or lines[0].startswith("#"):
        raise UsageError("{path} does not begin with a key: write one a line, without blank lines.", path=path)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def how_to_ask(running: Server, model: Model, options: ServeOptions, *, key: bool, template: bool) -> str:
    """Lines that work: for curl in a shell, and for Python with the package openai."""
    url, name = f"{running.url}/v1", model.path.stem
    body: dict[str, object] = {"model": name, "max_tokens": 100}
    body |= {"messages": [{"role": "user", "content": _QUESTION}]} if template else {"prompt": "Once upon a time"}
    path, call = ("chat/completions", "chat.completions") if template else ("completions", "completions")
    secret = _secret(options, key)
    header = [f'  --oauth2-bearer "{secret[0]}" \\'] if secret else []
    asked = ", ".join(f"{word}={value!r}" for word, value in body.items())
    said = "message.content" if template else "text"
    lines = [
        f"{model.path.name} answers at {url} until Ctrl-C.",
        *([] if template else ["It has no chat template: ask it to go on with a text."]),
        "",
        f"curl {url}/{path} \\",
        *header,
        "  -H 'Content-Type: application/json' \\",
        f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False))}",
        "",
        *(["import os"] if secret and "os." in secret[1] else []),
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{url}", api_key={secret[1] if secret else repr("none")})',
        f"answer = client.{call}.create({asked})",
        f"print(answer.choices[0].{said})",
    ]
    return "\n".join(lines)


def _secret(options: ServeOptions, key: bool) -> tuple[str, str] | None:
    """Where the key is, for a shell and for Python; never the key."""
    if options.key_file is not None:
        path = str(options.key_file.absolute())
        return f"$(head -n 1 {shlex.quote(path)})", f"open({path!r}).readline().strip()"
    return ("$GGUFY_API_KEY", 'os.getenv("GGUFY_API_KEY")') if key else None
