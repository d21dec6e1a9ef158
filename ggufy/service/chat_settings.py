"""How a visitor wants to be answered, checked: everything that comes from the page comes from strangers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ggufy.core.errors import UsageError
from ggufy.llama.chat.messages import clean
from ggufy.llama.chat.options import ChatOptions
from ggufy.models.chat_format import OFF, ON, RwkvFormat

CHAT, TEXT = "chat", "text"
MODES = (CHAT, TEXT)
THINKING = (OFF, "low", ON, "high")  # of the modes of a chat format, see RwkvFormat
LIMITS: dict[str, tuple[float, float]] = {  # what the page's sliders allow, both ends included
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "presence": (0.0, 2.0),
    "frequency": (0.0, 2.0),
    "length": (1, 4096),
}
ADVISED, LIKELIEST, OWN = "advised", "likeliest", "own"
SAMPLING = (ADVISED, LIKELIEST, OWN)
PENALTY = 0.4  # of either kind, as the RWKV authors publish it for World models
MAX_SYSTEM = 4_000  # characters


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """How a visitor wants to be answered."""

    mode: str = CHAT  # chat, or text: the model continues what is written
    system: str = ""  # system prompt; chat only
    think: str = OFF  # how much to think, for models that do; chat only
    temperature: float = 1.0
    top_p: float = 0.5
    presence: float = 0.0
    frequency: float = 0.0
    length: int = 512  # tokens of a reply, at most
    state: str = ""  # name of the tuned state to begin from; empty: none

    @classmethod
    def checked(cls, **values: object) -> ChatSettings:
        """Settings from a stranger's values; what is missing gets its default. Raises UsageError for any bad value."""
        known = {item.name for item in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise UsageError(
                "there is no setting {name}: use {names}.", name=repr(unknown[0]), names=", ".join(sorted(known))
            )
        mode, system = values.pop("mode", CHAT), values.pop("system", "")
        if mode not in MODES:
            raise UsageError("the mode is one of {modes}.", modes=", ".join(MODES))
        think = values.pop("think", OFF)
        if think not in THINKING:
            raise UsageError("thinking is one of {modes}.", modes=", ".join(THINKING))
        state = values.pop("state", "")
        if not isinstance(state, str):
            raise UsageError("the state must be the name of one.")
        if not isinstance(system, str):
            raise UsageError("the system prompt must be text.")
        if len(system) > MAX_SYSTEM:
            raise UsageError(
                "the system prompt has {count} characters: use at most {most}.", count=len(system), most=MAX_SYSTEM
            )
        numbers = {name: _number(name, value) for name, value in values.items()}
        length = int(numbers.pop("length", cls.length))
        texts = {"mode": str(mode), "system": clean(system).strip(), "think": str(think), "state": state}
        return cls(length=length, **texts, **numbers)  # type: ignore[arg-type]

    @property
    def options(self) -> ChatOptions:
        """The same for a process."""
        return ChatOptions(
            system=self.system if self.mode == CHAT else "",
            temperature=self.temperature,
            top_p=self.top_p,
            presence=self.presence,
            frequency=self.frequency,
            length=self.length,
        )


def sampling(kind: object, chat: RwkvFormat | None, think: object) -> dict[str, float]:
    """Numbers of ChatSettings, by their names, that one of SAMPLING means for a model that talks so: none for OWN, and
    none where its makers' advice is not known."""
    if kind == LIKELIEST:
        return {"temperature": 0.0, "top_p": 1.0, "presence": 0.0, "frequency": 0.0}
    if kind != ADVISED or chat is None:
        return {}
    advice = chat.sampling[ON if chat.thinks and think != OFF else OFF]
    penalties = {name: advice.get(f"{name}_penalty", PENALTY) for name in ("presence", "frequency")}
    return {"temperature": advice["temperature"], "top_p": advice["top_p"], **penalties}


def _number(name: str, value: object) -> float:
    low, high = LIMITS[name]
    limits = {"name": name, "low": f"{low:g}", "high": f"{high:g}"}
    known = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # NaN never is
    number = float(value) if known else math.nan  # type: ignore[arg-type]
    if name == "length" and not number.is_integer():
        raise UsageError("{name} must be a whole number from {low} to {high}.", **limits)
    if not known:
        raise UsageError("{name} must be a number from {low} to {high}.", **limits)
    return number
