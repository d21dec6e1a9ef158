"""`python -m ggufy lint MODEL.gguf`: whether llama.cpp reads a chat template as transformers does."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from ggufy.cli.terminal import stoppable, table
from ggufy.core.errors import SourceError, UsageError
from ggufy.formats.gguf import GgufHead, read_head
from ggufy.llama import server
from ggufy.llama.chat.options import Model
from ggufy.llama.install import Llama
from ggufy.llama.server_program import server_program
from ggufy.models.rendering import CONVERSATIONS, Rendering, render, special_tokens, template_of
from ggufy.system import resources
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path

_SAID = {"enable_thinking": False}  # to both
_ONLY_TEMPLATES = ["--no-warmup", "--no-repack"]  # nothing is computed


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.add_argument("model", metavar="MODEL.gguf", type=user_path)
    parser.add_argument(
        "--template",
        type=user_path,
        metavar="FILE",
        help="the source's: a tokenizer_config.json or chat_template.jinja (the GGUF's own)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace, settings: Settings, get_llama: Callable[[Settings], Llama]) -> int:
    """Compares; gives the exit code, 1 where something differs."""
    head = read_head(args.model)
    template = template_of(head, args.model.name)
    tokens = special_tokens(args.model, head)
    theirs = template_in(args.template) if args.template else template
    by_jinja = render(theirs, list(CONVERSATIONS.values()), tokens | _SAID)
    by_llama = rendered_by_llama(args.model, head, get_llama(settings))
    pairs = dict(zip(CONVERSATIONS, zip(by_jinja, by_llama, strict=True), strict=True))
    different = [name for name, (one, other) in pairs.items() if not same(one, other, tokens["bos_token"])]
    if args.json:
        rows = [
            {"conversation": name, "same": name not in different, "transformers": vars(one), "llama.cpp": vars(other)}
            for name, (one, other) in pairs.items()
        ]
        print(json.dumps({"same": not different, "conversations": rows}, indent=2, ensure_ascii=False))
    else:
        print(report(pairs, different))
    return 1 if different else 0


def same(one: Rendering, other: Rendering, bos: str) -> bool:
    """Whether both gave this prompt, or both gave none; llama.cpp leaves `bos` to the tokenizer where that puts it."""
    if one.error or other.error:
        return bool(one.error and other.error)
    return other.text in (one.text, one.text.removeprefix(bos))


def report(pairs: dict[str, tuple[Rendering, Rendering]], different: list[str]) -> str:
    """A line for each conversation, and both prompts of those that differ."""
    body = [
        [name, _short(one), _short(other), "differs" if name in different else "same"]
        for name, (one, other) in pairs.items()
    ]
    lines = [table(["conversation", "transformers", "llama.cpp", ""], body)]
    for name in different:
        for program, one in zip(("transformers", "llama.cpp"), pairs[name], strict=True):
            lines += ["", f"{name}, {program}: {one.error or json.dumps(one.text, ensure_ascii=False)}"]
    lines += ["", f"{len(pairs) - len(different)} of {len(pairs)} conversations are the same."]
    return "\n".join(lines)


def _short(one: Rendering) -> str:
    return "refuses" if one.error else f"{len(one.text)} letters"


def rendered_by_llama(path: Path, head: GgufHead, llama: Llama) -> list[Rendering]:
    """What llama-server makes of the conversations with the template of a GGUF."""
    options = server.ServeOptions(port=server.free_port(), threads=1)
    model = dataclasses.replace(Model.read(path), chat=None)  # RWKV's templates are those of the file, too
    with stoppable() as stopped, tempfile.TemporaryDirectory(prefix="ggufy-lint-") as place:
        folder = Path(place)
        environment = resources.child_environment(threads=1, home=folder)
        program = server_program(llama, environment)
        command = server.server_command(program, model, head, options, folder) + _ONLY_TEMPLATES
        with server.running_server(
            command, options=options, environment=environment, folder=folder, stopped=stopped.is_set
        ) as running:
            answers = [
                running.post("/apply-template", {"messages": turns, "chat_template_kwargs": _SAID})
                for turns in CONVERSATIONS.values()
            ]
    return [_rendering(answer) for answer in answers]


def _rendering(answer: dict[str, object]) -> Rendering:
    if isinstance(prompt := answer.get("prompt"), str):
        return Rendering(text=prompt)
    error = answer.get("error")
    return Rendering(error=str(error.get("message", error) if isinstance(error, dict) else error))


def template_in(path: Path) -> str:
    """The chat template in a file as models on the Hub have it. Raises UsageError, SourceError."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return text
        found = json.loads(text).get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            "{path} cannot be read as a template ({reason}): check the file.", path=path, reason=error
        ) from error
    if isinstance(found, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise SourceError("{path} has no chat template: give the chat_template.jinja beside it.", path=path)
    return found
