"""Settings, read once from the environment by `Settings.from_env()`: the only reader of os.environ.

| variable           | meaning                                                     | default              |
|--------------------|-------------------------------------------------------------|----------------------|
| GGUFY_OUT          | folder for results and job records                          | ./ggufy-out          |
| GGUFY_CACHE        | folder for the llama.cpp build, texts and downloads         | ~/.cache/ggufy       |
| GGUFY_LLAMA_DIR    | folder with your own llama.cpp tools instead of the build   |                      |
| GGUFY_THREADS      | threads for the tools                                       | one less than allowed|
| GGUFY_CPU_PERCENT  | part of the allowed CPU time to use: 10 to 100, or auto     | 100                  |
| HF_TOKEN           | Hugging Face token, for private or gated sources and hf     |                      |
| HF_ENDPOINT        | another address of the Hub, such as https://hf-mirror.com   | https://huggingface.co |
| GGUFY_TOKEN_TO_MIRROR | 1: the host in HF_ENDPOINT gets HF_TOKEN, and sees it    |                      |
| MODELSCOPE_API_TOKEN | ModelScope token, for private sources and modelscope      |                      |
| MODELSCOPE_ENDPOINT | another address of ModelScope: https://www.modelscope.ai   | https://modelscope.cn |
| GGUFY_HUB          | where results go: local, hf, modelscope, or hf,modelscope   | local; on a Space hf |
| GGUFY_COMMITS      | commits to the Hub in an hour, at most                      | 60                   |
| GGUFY_LEASE        | seconds after which a silent runner's work is taken over    | 600                  |
| GGUFY_WORKER       | set by `submit`: one name for each Job that shares the work |                      |
| GGUFY_JOBS         | set by `submit`: how many Jobs share the work               | 1                    |
| GRADIO_SERVER_NAME | address that the page listens on; 0.0.0.0 for all           | 127.0.0.1            |
| GRADIO_SERVER_PORT | port of the page                                            | 7860                 |
| SPACE_ID           | set by Hugging Face on a Space: visitors may only look      |                      |
| SYSTEM             | spaces on a Space, or nothing starts there; the image sets it|                      |
| GGUFY_OWNERS       | accounts and organisations that may start jobs there        | the Space's owner    |
| GGUFY_CHAT         | 1: on a Space, every visitor may chat                       |                      |
| GGUFY_OPEN         | 1: on a Space, every visitor may start and cancel jobs      |                      |
| GGUFY_PASSWORD     | elsewhere: what the page asks for before it shows anything  |                      |
| GGUFY_TRUSTED_NETWORK | 1: elsewhere, whoever reaches the page may do everything |                      |
| GGUFY_API_KEY      | the key that requests to `ggufy serve` have to give         |                      |
| GGUFY_WEBHOOK      | address that the page tells how jobs end, by a POST of JSON |                      |
| GGUFY_HOSTS        | elsewhere: more names that the page is reached by: a.b,*.c  | its own              |
"""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from ggufy.core.errors import UsageError
from ggufy.core.hosts import MODELSCOPE
from ggufy.core.messages import Message
from ggufy.core.scrub import remember
from ggufy.system.files import chosen_with
from ggufy.system.resources import AUTOMATIC
from ggufy.system.user_paths import user_path

logger = logging.getLogger(__name__)
HUB_LOCAL, HUB_HF, HUB_MODELSCOPE = "local", "hf", "modelscope"
HUBS = (HUB_LOCAL, HUB_HF, HUB_MODELSCOPE, f"{HUB_HF},{HUB_MODELSCOPE}")
# What pip may need to reach its index; nothing else, and never a Hugging Face token, goes to it.
_PIP_PREFIXES = (
    "PIP_",
    "SSL_CERT",
    "REQUESTS_CA",
    "http_proxy",
    "https_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)
_MODELSCOPE = "https://modelscope.cn"
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


_unusable: dict[str, str] = {}  # variable -> what is wrong with its proxy, since `prepare_process`


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the environment decides."""

    out: Path  # results and job records
    cache: Path  # what can be made or fetched again
    llama_dir: Path | None  # someone's own llama.cpp
    threads: int | None  # None: decided from cgroup and affinity
    hf_token: str | None = field(repr=False)  # never printed
    hub: str  # one of HUBS
    commits_an_hour: int
    lease_s: float  # seconds
    worker: str = ""  # name of this one among Jobs that share the work; empty: it works alone
    jobs: int = 1  # so many Jobs share the work
    home: Path  # the user's home folder, for children
    pip_environment: Mapping[str, str] = field(repr=False)  # for the one pip call of the set-up
    die_with_parent: bool  # set by the Makefile: stopping `make` stops the work too
    server_name: str = "127.0.0.1"  # address that the page listens on
    server_port: int = 7860
    space_id: str | None = None  # owner/name of the Space that this runs on
    owners: frozenset[str] = frozenset()  # accounts and organisations that the Space belongs to
    login: bool = False  # the Space has a sign-in
    cpu_percent: int = 100  # of the allowed CPU time; throttle.AUTOMATIC: as much as leaves the page quick
    open_to_all: bool = False  # on a Space: visitors may start jobs
    chat_for_all: bool = False  # on a Space: visitors may chat
    password: str = field(default="", repr=False)  # elsewhere: of the page
    api_key: str = field(default="", repr=False)  # of the server that `serve` starts
    webhook: str = field(default="", repr=False)  # address that hears how jobs end; often it is a secret
    trusted_network: bool = False  # elsewhere: whoever reaches the page may use it
    hosts: frozenset[str] = frozenset()  # elsewhere: more names of the page, in small letters; `*.` stands for any
    hub_only: bool = False  # sources are the demo or on a hub: see for_strangers
    modelscope_token: str | None = field(default=None, repr=False)  # never printed
    withheld: str = ""  # the mirror that does not get HF_TOKEN, so that `hf_token` is None

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Reads os.environ, or the mapping given. Raises UsageError for a value that is no number, or for a Space's
        environment in which gradio would not see that it runs on a Space: it logs everyone in as the owner there.
        """
        env = os.environ if environment is None else environment
        if env.get("SPACE_ID") and env.get("SYSTEM") != "spaces":
            raise UsageError(
                "SPACE_ID is set but SYSTEM is not spaces, so every visitor would be taken for the Space's owner: "
                "put `ENV SYSTEM=spaces` into its Dockerfile."
            )
        home = _home(env)
        cache, llama_dir = env.get("GGUFY_CACHE"), env.get("GGUFY_LLAMA_DIR")
        if not cache and home is None:
            raise UsageError("there is no home folder for the cache: set HOME or GGUFY_CACHE.")
        space_id, token = env.get("SPACE_ID") or None, _token(env, "HF_TOKEN")
        places = (HUB_HF, HUB_LOCAL, *HUBS[2:]) if space_id and token else HUBS
        withheld = _mirror(env) if token else ""
        owners = env.get("GGUFY_OWNERS") or env.get("SPACE_AUTHOR_NAME") or (space_id or "").partition("/")[0]
        return cls(
            out=user_path(env.get("GGUFY_OUT") or "ggufy-out"),
            cache=(kept := user_path(cache) if cache else Path(home or "") / ".cache" / "ggufy"),
            llama_dir=user_path(llama_dir) if llama_dir else None,
            threads=_number(env, "GGUFY_THREADS"),
            cpu_percent=_percent(env, "GGUFY_CPU_PERCENT"),
            hf_token=None if withheld else token,
            withheld=withheld,
            modelscope_token=_token(env, "MODELSCOPE_API_TOKEN"),
            hub=_choice(env, "GGUFY_HUB", places),
            commits_an_hour=_number(env, "GGUFY_COMMITS") or 60,
            lease_s=float(_number(env, "GGUFY_LEASE") or 600),
            worker=env.get("GGUFY_WORKER", "").strip(),
            jobs=_number(env, "GGUFY_JOBS") or 1,
            home=home or kept,
            pip_environment={name: value for name, value in env.items() if name.startswith(_PIP_PREFIXES)},
            die_with_parent=env.get("GGUFY_DIE_WITH_PARENT") == "1",
            server_name=env.get("GRADIO_SERVER_NAME") or "127.0.0.1",
            server_port=_number(env, "GRADIO_SERVER_PORT", most=65535) or 7860,
            space_id=space_id,
            owners=_names(owners),
            login=bool(env.get("OAUTH_CLIENT_ID")),
            chat_for_all=env.get("GGUFY_CHAT") == "1",
            open_to_all=env.get("GGUFY_OPEN") == "1",
            password=env.get("GGUFY_PASSWORD", "").strip(),
            api_key=env.get("GGUFY_API_KEY", "").strip(),
            webhook=_webhook(env),
            trusted_network=env.get("GGUFY_TRUSTED_NETWORK") == "1",
            hosts=_names(env.get("GGUFY_HOSTS", "").lower()),
        )

    def __post_init__(self) -> None:
        remember(self.hf_token)
        remember(self.modelscope_token)
        remember(self.password)
        remember(self.api_key)
        remember(self.webhook)

    def for_strangers(self) -> Settings:
        """What their jobs are made and run with, and their sources looked at: without the token, and without files or
        the network of this machine."""
        return replace(self, hf_token=None, modelscope_token=None, hub_only=True)

    def token_for(self, host: str) -> str | None:
        """The token that the hub of this name (core/hosts.py) gets."""
        return self.modelscope_token if host == MODELSCOPE else self.hf_token

    def having(self, *, out: Path | None = None, hub: str | None = None) -> Settings:
        """The same settings with what the command line says instead."""
        return replace(self, out=out or self.out, hub=hub or self.hub)


def prepare_process(settings: Settings) -> None:
    """Makes this process's environment fit for the libraries in it, before they are imported: some read it then."""
    chosen_with(settings.out, Message("{OUT}"))
    chosen_with(settings.cache, "GGUFY_CACHE")
    if settings.withheld:
        logger.warning("HF_TOKEN is not sent to %s: GGUFY_TOKEN_TO_MIRROR=1 would send it there", settings.withheld)
    # Its own place is in the home folder, and where that cannot be written it would log to stdout.
    os.environ.setdefault("HF_XET_LOG_DEST", os.devnull)
    for name in [name for name in os.environ if name.lower() in _PROXIES]:
        if fault := _proxy_fault(name, os.environ[name].strip()):
            _unusable[name] = fault
            logger.info("%s", fault)
            del os.environ[name]  # making any HTTP client would fail, also gradio's when it is imported


def proxy_fault() -> str:
    """A sentence, if the proxy for https is one that no client can be made with; else empty."""
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY")):
        return ""
    return next((fault for name, fault in _unusable.items() if name.lower() != "http_proxy"), "")


def redraws(stream: TextIO) -> bool:
    """True for a terminal in which a line can be drawn over."""
    return stream.isatty() and (os.environ.get("TERM") or "dumb") != "dumb"


def _proxy_fault(variable: str, text: str) -> str:
    """What is wrong with a proxy's address; nothing of it but its kind is told, as it may hold a password."""
    kind, found, rest = text.partition("://")
    kind, rest = (kind.lower(), rest) if found else ("http", text)
    if not text:
        return ""
    if kind not in ("http", "https", "socks5", "socks5h"):
        advice = Message("write socks5://…")
    elif kind.startswith("socks") and importlib.util.find_spec("socksio") is None:
        advice = Message("run `make setup` again")
    elif not _is_place(rest):
        advice = Message("write it as http://host:port")
    else:
        return ""
    return Message(
        "the proxy in {variable} ({kind}://…) cannot be used: {advice} or unset it.",
        variable=variable,
        kind=kind,
        advice=advice,
    )


def _is_place(text: str) -> bool:
    try:
        place = urlsplit(f"//{text}")
        return bool(place.hostname) and (place.port is None or place.port > 0) and text.isascii()
    except ValueError:
        return False


def modelscope_endpoint() -> str:
    """Address of ModelScope, without a slash at its end."""
    text = os.environ.get("MODELSCOPE_ENDPOINT", "").strip().rstrip("/") or _MODELSCOPE
    return text if "://" in text else f"https://{text}"


def _mirror(env: Mapping[str, str]) -> str:
    """The host that HF_ENDPOINT names, if it is none that a token is meant for: somebody else's sees what it gets."""
    host = _host(env.get("HF_ENDPOINT", ""))
    own = host in ("", "huggingface.co") or host.endswith(".huggingface.co") or _is_local(host)
    return "" if own or env.get("GGUFY_TOKEN_TO_MIRROR") == "1" else host


def _is_local(host: str) -> bool:
    """True for a name or address that is this machine's alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(address: str) -> str:
    try:
        return (urlsplit(address.strip()).hostname or "").rstrip(".")
    except ValueError:  # the client says what is wrong with it
        return ""


def _webhook(env: Mapping[str, str]) -> str:
    """Raises UsageError, which does not quote it, for an address on whose way others could read along."""
    text = env.get("GGUFY_WEBHOOK", "").strip()
    scheme, host = text.partition("://")[0].lower(), _host(text)
    if text and not (host and (scheme == "https" or (scheme == "http" and _is_local(host)))):
        raise UsageError("GGUFY_WEBHOOK is no https:// address: give one; http:// is for this machine only.")
    return text


def _token(env: Mapping[str, str], variable: str) -> str | None:
    """A token without what copying it brings along. Raises UsageError, which does not quote it, for no token."""
    raw = env.get(variable, "")
    remember(raw.strip())
    token = raw.strip()
    if len(token) > 1 and token[0] == token[-1] and token[0] in "\"'":
        token = token[1:-1].strip()
    if not re.fullmatch("[!-~]*", token):
        raise UsageError("{variable} holds a character that no token has: paste it again.", variable=variable)
    return token or None


def _home(env: Mapping[str, str]) -> Path | None:
    """The user's home folder; None in a container whose user nobody knows."""
    try:
        return Path(env.get("HOME") or Path.home())
    except RuntimeError:
        return None


def _names(text: str) -> frozenset[str]:
    """Names between commas."""
    return frozenset(filter(None, (name.strip() for name in text.split(","))))


def _number(env: Mapping[str, str], name: str, most: int | None = None) -> int | None:
    text = env.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1 or (most is not None and int(text) > most):
        limits = "of at least 1" if most is None else f"from 1 to {most}"
        raise UsageError("{name} is {text}: give a whole number {limits}.", name=name, text=repr(text), limits=limits)
    return int(text)


def _percent(env: Mapping[str, str], name: str) -> int:
    text = env.get(name, "").strip().lower().removesuffix("%") or "100"
    if text == "auto":
        return AUTOMATIC
    if not text.isdecimal() or not 10 <= int(text) <= 100:
        raise UsageError("{name} is {text}: give a percentage from 10 to 100, or auto.", name=name, text=repr(text))
    return int(text)


def _choice(env: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    """One of the words; the first if nothing is set."""
    text = env.get(name, "").strip().lower() or choices[0]
    if text not in choices:
        raise UsageError("{name} is {text}: one of {choices}.", name=name, text=repr(text), choices=", ".join(choices))
    return text
