"""The conversations of the page: who said what, to which model, and how the reply comes.

Every visitor has two sides, a and b, to compare two models, and each side a conversation for each mode. They are kept
here, in memory and bounded, and by the visitor's browser, which brings them back after a restart; the processes in
llama/ remember nothing, so any of them can go on with any conversation, after a kill or with another model too.
Everything that comes from the page comes from strangers, and is checked here.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ggufy.core.errors import BusyError, SourceError, UsageError
from ggufy.formats.rwkvcpp import is_rwkvcpp
from ggufy.formats.session import SUFFIX
from ggufy.llama.chat.backend import ChatBackend, ProcessExited
from ggufy.llama.chat.messages import clean
from ggufy.llama.chat.options import Model
from ggufy.llama.chat.pool import Pool
from ggufy.llama.chat.process import ChatProcess, CompletionProcess, StateChatProcess
from ggufy.llama.install import Llama
from ggufy.llama.states import check_state
from ggufy.models.chat_format import FORMATS, RwkvFormat
from ggufy.models.chat_names import format_named
from ggufy.rwkvcpp.backend import RwkvcppChat, RwkvcppCompletion, read_model, serve_words
from ggufy.service.access import STRANGER, Visitor
from ggufy.service.chat_settings import CHAT, MODES, ChatSettings
from ggufy.service.conversation import Conversation, Turn, kept_turns
from ggufy.system import resources

SIDES = ("a", "b")
BIN = ".bin"  # a file of rwkv.cpp, which no state of llama.cpp's goes with
MAX_MESSAGE = 32_000
MAX_VISITORS = 64


class Chats:
    """All conversations, and the processes behind them. Safe to use from many threads."""

    def __init__(
        self,
        llama: Callable[[], Llama],
        models: Callable[[Visitor], dict[str, Path]],
        threads: Callable[[], int],
        owns: Callable[[Visitor], bool] = lambda who: False,
        *,
        processes: int = 2,
        idle_s: float = 300.0,
        abandoned_s: float = 60.0,
        available: Callable[[], int] = resources.memory_available,
        extra: Sequence[str] = (),
    ):
        """`models` gives name → file of the finished quants that somebody may talk to, in the order they are to be
        shown; `owns` says who may use files that lie beside them.

        `processes` are kept at most, each until it was idle for `idle_s` seconds, or its reply was not asked for
        more for `abandoned_s`. `available` says how many bytes of memory are free. `extra` is added to every command.
        """
        self._llama, self._models, self._threads, self._extra = llama, models, threads, extra
        self._owns = owns
        self._pool = Pool(size=processes, idle_s=idle_s, abandoned_s=abandoned_s, available=available)
        self._lock = threading.Lock()
        self._conversations: OrderedDict[tuple[str, str, str], Conversation] = OrderedDict()

    def models(self, who: Visitor = STRANGER) -> list[str]:
        """Names of the models that somebody may talk to, newest job first."""
        return list(self._models(who))

    def states(self, model: object, who: Visitor = STRANGER) -> dict[str, Path]:
        """The tuned states that lie beside a model, by their names. They are no job's files, but were put there, so
        only the page's owner may use them."""
        path = self._models(who).get(model) if isinstance(model, str) else None
        if path is None or path.suffix == BIN or not self._owns(who):
            return {}
        return {file.name: file for file in sorted(path.parent.glob(f"*{SUFFIX}")) if file.is_file()}

    def format_of(self, model: str, who: Visitor = STRANGER) -> RwkvFormat | None:
        """The chat format of a model that is an RWKV; None for others. By its name while it is not here."""
        if (path := self._models(who).get(model)) is None:
            return None
        try:
            state = path.stat()
            return _read(path, state.st_mtime_ns, state.st_size).chat
        except OSError:
            return FORMATS[format_named([model])]
        except SourceError:  # the one who says something to it is told
            return None

    def turns(self, visitor: str, side: str, mode: str = CHAT) -> list[Turn]:
        """What was said: `role` user or assistant, `content`, and `thought` where the model has thought before it."""
        conversation = self._conversations.get((visitor, side, mode))
        return [dict(turn) for turn in conversation.turns] if conversation else []

    def speeds(self, visitor: str, side: str, mode: str = CHAT) -> tuple[float, float] | None:
        """Tokens a second of the last reply, reading and writing; None while they are not known."""
        conversation = self._conversations.get((visitor, side, mode))
        return conversation.speeds if conversation else None

    def used(self, visitor: str, side: str, mode: str = CHAT) -> tuple[int, int] | None:
        """Tokens of the context after the last reply, and how many there may be (0: as many as the model likes); None
        while they are not known."""
        conversation = self._conversations.get((visitor, side, mode))
        return conversation.used if conversation else None

    def kept(self, visitor: str) -> dict[str, dict[str, list[Turn]]]:
        """Mode → side → what was said, for the visitor's browser to keep."""
        return {mode: {side: self.turns(visitor, side, mode) for side in SIDES} for mode in MODES}

    def bring_back(self, visitor: str, kept: object) -> None:
        """Goes on with what a browser has kept, as far as that is conversations, and nothing else was said since."""
        for mode, side in itertools.product(MODES, SIDES):
            sides = kept.get(mode) if isinstance(kept, Mapping) else None
            turns = kept_turns(sides.get(side) if isinstance(sides, Mapping) else None)
            if turns and not self.turns(visitor, side, mode):
                self._conversation(visitor, side, mode).turns = turns

    def say(
        self,
        visitor: str,
        side: str,
        *,
        model: str,
        settings: ChatSettings,
        message: str | None,
        turn: int | None = None,
        who: Visitor = STRANGER,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[None]:
        """Adds a message and lets the model reply; yields each time the turns have changed.

        `visitor` is whose conversation it is, `who` their account. `message` None asks for another reply to the last
        message. `turn` goes back first: to the message of that number, which the new one replaces, or to the reply of
        that number, which is made again. The reply ends early by `stop`, when `stopped` says so, or when the generator
        is closed; what has come of it stays. Raises UsageError (a bad value, or a model that does not fit in memory),
        BusyError (a reply is being made here, or as many as there are processes), ToolError, SourceError. After an
        error the message stays without a reply, and can be asked again with None.
        """
        path = self._models(who).get(model) if isinstance(model, str) else None
        if path is None:
            raise UsageError("this model is not among the finished quants: choose one of the list.")
        text = None if message is None else _message(message)
        session = self.states(model, who).get(settings.state)
        if settings.state and session is None:
            raise UsageError("this state does not lie beside {model}: choose one of the list.", model=model)
        conversation = self._conversation(visitor, side, settings.mode)
        if not conversation.busy.acquire(blocking=False):
            raise BusyError("the reply before this one is still being made: wait for it, or stop it.")
        try:
            conversation.stopped, conversation.speeds, conversation.used = False, None, None
            conversation.ask(text, turn)
            yield
            yield from self._reply(conversation, path, settings, session, lambda: conversation.stopped or stopped())
        finally:
            conversation.busy.release()

    def stop(self, visitor: str) -> None:
        """Ends the replies that are being made for a visitor."""
        for side, mode in itertools.product(SIDES, MODES):
            if conversation := self._conversations.get((visitor, side, mode)):
                conversation.stopped = True

    def clear(self, visitor: str, mode: str = CHAT) -> None:
        """Forgets a visitor's conversations in a mode."""
        self.stop(visitor)
        with self._lock:
            for side in SIDES:
                self._conversations.pop((visitor, side, mode), None)

    def close(self) -> None:
        """Ends every process; nothing can be asked after it."""
        self._pool.close()

    def _conversation(self, visitor: str, side: str, mode: str) -> Conversation:
        if side not in SIDES:
            raise UsageError("the side is one of {sides}.", sides=", ".join(SIDES))
        with self._lock:
            conversation = self._conversations.setdefault((visitor, side, mode), Conversation())
            self._conversations.move_to_end((visitor, side, mode))
            idle = [key for key, value in self._conversations.items() if not value.busy.locked()]
            for key in idle[: max(0, len(self._conversations) - MAX_VISITORS * len(SIDES))]:
                del self._conversations[key]
            return conversation

    def _reply(
        self,
        conversation: Conversation,
        path: Path,
        settings: ChatSettings,
        session: Path | None,
        stopped: Callable[[], bool],
    ) -> Iterator[None]:
        question = conversation.turns[-1]["content"]
        before = conversation.before()
        for attempt in (1, 2):
            try:
                with self._lend(path, settings, session) as chat_backend:
                    pieces = chat_backend.say(question, before, think=settings.think, stopped=stopped)
                    chat = chat_backend.model.chat if settings.mode == CHAT else None
                    with contextlib.closing(pieces):  # ends the reply when this generator is closed
                        yield from conversation.replied(pieces, chat, settings.think)
                    if not stopped() and conversation.turns[-1]["role"] == "user":
                        conversation.put("", "")  # the model chose to say nothing
                        yield
                    conversation.speeds = chat_backend.speeds
                    if chat_backend.used is not None:
                        conversation.used = chat_backend.used, chat_backend.model.context
                    conversation.trim()
                return
            except ProcessExited:  # it had ended since it was last used, and the question never reached it
                if attempt == 2:
                    raise

    def _lend(self, path: Path, settings: ChatSettings, session: Path | None) -> AbstractContextManager[ChatBackend]:
        try:
            state, ours = path.stat(), is_rwkvcpp(path)
        except OSError:
            raise UsageError("{name} is gone: choose another model.", name=path.name) from None
        if session:
            check_state(session, path)
        options, chat = replace(settings.options, state=session), settings.mode == CHAT
        program = StateChatProcess if session else ChatProcess

        def make(starter: Executor) -> ChatBackend:
            llama, threads = self._llama(), self._threads()
            model = _read(path, state.st_mtime_ns, state.st_size)
            if ours:
                served, extra = RwkvcppChat if chat else RwkvcppCompletion, serve_words(ggml_folder=llama.bin)
                return served(model, options, threads=threads, starter=starter, extra=extra)
            kind = program if chat else CompletionProcess
            return kind(llama, model, options, threads=threads, starter=starter, extra=self._extra)

        key = (chat, path, state.st_mtime_ns, state.st_size, options)
        return self._pool.lend(key, name=path.name, file_size=state.st_size, make=make)


def _message(message: object) -> str:
    if not isinstance(message, str):
        raise UsageError("the message must be text.")
    if len(message) > MAX_MESSAGE:
        raise UsageError(
            "the message has {count} characters: use at most {most}.", count=len(message), most=MAX_MESSAGE
        )
    text = clean(message)
    if not text.strip():
        raise UsageError("the message is empty: write something first.")
    return text


@lru_cache(maxsize=64)
def _read(path: Path, mtime_ns: int, size: int) -> Model:
    """A file as it was at that time."""
    return read_model(path) if is_rwkvcpp(path) else Model.read(path)
