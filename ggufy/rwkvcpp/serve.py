"""`python -m ggufy.rwkvcpp.serve MODEL.bin`: a loaded model that answers on its standard streams, for backend.py.

Lines of JSON. In: `{"ask": {prompt, not_first, options}}`, where options are those of ChatOptions, and
`{"stop": true}`, which ends the answer that is being made, if there is one. Out: `{"ready": true}` once the model is
loaded, and for each question `{"piece": text}` as it comes, and last `{"end": why, "speeds": [reading, writing]}`,
where `why` is empty for an answer that was stopped. What cannot be done is `{"error": message}`, after which the next
question may come.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from ggufy.core.errors import Cancelled, GgufyError
from ggufy.core.messages import Message
from ggufy.llama.chat.options import ChatOptions
from ggufy.rwkvcpp.opened import opened
from ggufy.rwkvcpp.reading import Reader
from ggufy.rwkvcpp.replies import Question, Reply
from ggufy.rwkvcpp.tokenizer import AUTO, Tokenizer, tokenizer_of


class Questions:
    """What comes in, read by a thread of its own, so that an answer can be stopped."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._asked: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="questions", daemon=True).start()

    def next(self) -> dict[str, Any] | None:
        """The next question; None when no more will come."""
        return self._asked.get()

    def _read(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "ask" in message:
                self.stopped.clear()  # a stop before it was for the question before
                self._asked.put(message["ask"])
            else:
                self.stopped.set()
        self.stopped.set()
        self._asked.put(None)


def say(**message: Any) -> None:
    """Writes one line."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def refuse(error: GgufyError) -> None:
    """Writes why something cannot be done, so that it can be said in another language."""
    message = error.message
    say(error=(message if isinstance(message, Message) else Message(message)).to_record())


def answer(reader: Reader, tokenizer: Tokenizer, ask: dict[str, Any], questions: Questions) -> None:
    """Writes the answer to one question."""
    options = ChatOptions(**ask["options"] | {"stops": tuple(ask["options"]["stops"])})
    reply = Reply(reader, tokenizer, Question(prompt=ask["prompt"], options=options, not_first=ask["not_first"]))
    try:
        for piece in reply.pieces(questions.stopped.is_set):
            say(piece=piece)
    except Cancelled:
        pass
    except GgufyError as error:
        refuse(error)
        return
    say(end=reply.end, speeds=reply.speeds)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ggufy.rwkvcpp.serve")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tokenizer", default=AUTO)
    parser.add_argument("--ggml", type=Path)
    parser.add_argument("--library", type=Path)
    args = parser.parse_args(arguments)
    try:
        engine = opened(args.model, threads=args.threads, ggml_folder=args.ggml, library=args.library)
        tokenizer = tokenizer_of(args.model, engine.n_vocab, args.tokenizer)
    except GgufyError as error:
        refuse(error)
        return 1
    reader, questions = Reader(engine), Questions()
    say(ready=True)
    while (ask := questions.next()) is not None:
        answer(reader, tokenizer, ask, questions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
