"""How llama.cpp is told to talk: the options of a reply, what matters about a model, and the two commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ggufy.formats.gguf import read_head
from ggufy.llama.chat import messages
from ggufy.models import registry
from ggufy.models.chat_format import KEY, RwkvFormat, format_of_gguf
from ggufy.models.rwkv import CONTEXT_LENGTH

_AS_IT_IS = "{{- messages[-1]['content'] -}}"  # a template for a message that is a whole prompt already
OTHER_CONTEXT = 4096  # tokens; RWKV needs no limit, other models keep memory for every token


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How to answer; a process keeps the options that it was started with."""

    system: str = ""  # system prompt
    temperature: float = 1.0
    top_p: float = 0.5
    presence: float = 0.0  # penalty for a token that the last 64 have
    frequency: float = 0.0  # penalty for each time that they have it
    length: int = 512  # tokens of a reply, at most
    top_k: int = 0  # the likeliest tokens to choose from; 0: all
    repeat: float = 1.0  # what the logits of the last 64 tokens are divided by; 1: nothing
    seed: int | None = None  # of the random choice; None: another one each time
    stops: tuple[str, ...] = ()  # texts before which a completion ends
    state: Path | None = None  # a session file to begin from, which is never written to; completions only


@dataclass(frozen=True, kw_only=True)
class Model:
    """What of a GGUF file decides how it is talked to."""

    path: Path
    chat: RwkvFormat | None  # an RWKV's format, in which prompts are written here
    template: str = ""  # another model's chat template, in Jinja
    said: tuple[tuple[str, int], ...] = ()  # keys of its metadata that are to say something else

    @property
    def context(self) -> int:
        """Tokens that a conversation may have; 0: as many as it likes."""
        return 0 if self.chat else OTHER_CONTEXT

    @classmethod
    def read(cls, path: Path) -> Model:
        """Raises SourceError for a file that is no GGUF."""
        path = path.absolute()  # llama.cpp's programs run in a folder of their own
        metadata = read_head(path).metadata
        chat = format_of_gguf(metadata, path.name)
        if chat is None:
            return cls(path=path, chat=None, template=str(metadata.get("tokenizer.chat_template", "")))
        arch, said = str(metadata.get("general.architecture")), []
        if KEY not in metadata:
            # Others' files, and older ones of ours, end a turn at a blank line: replies of one paragraph.
            said.append(("tokenizer.ggml.eot_token_id", chat.end_token))
        if registry.named(arch) and metadata.get(f"{arch}.context_length") != CONTEXT_LENGTH:
            # The length of the texts that it was trained on, which llama.cpp takes for a limit; RWKV has none.
            said.append((f"{arch}.context_length", CONTEXT_LENGTH))
        return cls(path=path, chat=chat, said=tuple(said))


def chat_command(tool: Path, model: Model, options: ChatOptions, *, threads: int, folder: Path) -> list[str]:
    """llama-cli for `model`. Texts go through files in `folder`, which are written here.

    One slot and no store of old prompts, so that memory is the model's and one conversation's; four checkpoints of
    RWKV's state let the next question go on from the last one instead of reading everything again.
    """
    command = [str(tool), *_common(model, options, threads), "--reasoning-format", "none"]
    command += ["-np", "1", "--cache-ram", "0", "-ctxcp", "4", "-lv", "3"]  # the log says how much context is used
    if model.chat:
        command += ["--jinja", "--chat-template-file", str(_written(folder / "template.jinja", _AS_IT_IS))]
        return command + [word for stop in model.chat.stops for word in ("-r", stop)]
    if options.system:
        command += ["-sysf", str(_written(folder / "system.txt", options.system))]
    if model.template:
        file = _written(folder / "template.jinja", messages.unpacking(model.template))
        command += ["--jinja", "--chat-template-file", str(file)]
    return command


def completion_command(
    tool: Path, model: Model, options: ChatOptions, *, threads: int, folder: Path, text: str
) -> list[str]:
    """llama-completion that continues `text`, which it reads from a file in `folder`."""
    file = _written(folder / "prompt.txt", text)
    command = [str(tool), *_common(model, options, threads), "-no-cnv", "--no-display-prompt", "-f", str(file)]
    if options.state:
        command += ["--prompt-cache", str(options.state.absolute()), "--prompt-cache-ro"]
    return command


def _common(model: Model, options: ChatOptions, threads: int) -> list[str]:
    command = ["-m", str(model.path), "--simple-io", "--no-escape", "-t", str(threads), "-n", str(options.length)]
    # Only the samplers that the options name, or the numbers would not be the whole truth.
    samplers = "penalties;top_k;top_p;temperature" if options.top_k else "penalties;top_p;temperature"
    command += ["--samplers", samplers, "--temp", f"{options.temperature:g}"]
    command += ["--top-p", f"{options.top_p:g}", "--presence-penalty", f"{options.presence:g}"]
    command += ["--frequency-penalty", f"{options.frequency:g}", "--repeat-penalty", f"{options.repeat:g}"]
    command += ["--top-k", str(options.top_k), *(["-s", str(options.seed)] if options.seed is not None else [])]
    command += [word for key, value in model.said for word in ("--override-kv", f"{key}=int:{value}")]
    return command if model.chat else [*command, "-c", str(OTHER_CONTEXT)]


def _written(path: Path, text: str) -> Path:
    path.write_text(text + "\n", encoding="utf-8", newline="\n")  # the tools drop one newline at the end
    return path
