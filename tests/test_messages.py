"""What people read: templates and values, in English and Chinese, in the words of a terminal and of the page."""

import ast
import copy
import json
import pickle
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from ggufy.core import errors
from ggufy.core.catalog import parse_types
from ggufy.core.errors import DiskError, GgufyError, QuotaError, ToolError, sentence_of, without_folders
from ggufy.core.job import Job, Status
from ggufy.core.job_record import from_json, to_json
from ggufy.core.messages import TERMINAL, Message, holes
from ggufy.models.vocab import load_vocab
from ggufy.net.hub_errors import hub_error
from ggufy.service.chat_settings import ChatSettings
from ggufy.sources.inspect import inspect
from ggufy.system.settings import Settings
from ggufy.texts.calibration import pin_text
from ggufy.ui.i18n import TEXTS
from ggufy.ui.messages import PAGE, catalogue, told
from tests import tiny
from tests.test_job import REQUEST

ADVICE = re.compile(r"[a-z{][^:*]{12,}: [a-z][^:*]*\.", re.DOTALL)  # what is wrong, and what to do
JOB = Job(request=REQUEST)
ROOT = Path(__file__).parent.parent
KINDS = {"Message", "ProcessExited"} | {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, GgufyError)
}
# Where errors never reach the page, and why.
NOT_ON_THE_PAGE = {
    "ggufy/cli": "for the terminal",
    "ggufy/system/settings.py": "ends the program before there is a page",
    "ggufy/ui/api.py": "for programs, which get English",
    "ggufy/ui/server.py": "ends the program before there is a page",
}


def chinese(text: str) -> str:
    return told(text, TEXTS["zh"])


@cache
def made() -> tuple[tuple[str, ast.Call], ...]:
    """Every place that makes an error or a message, `file:line`, and the call."""
    return tuple(_made())


def _made() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted((ROOT / "ggufy").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[_, *_]) if name in KINDS:
                    yield f"{path.relative_to(ROOT).as_posix()}:{node.lineno}", node


def called(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def written(node: ast.JoinedStr | ast.Constant) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)


def template(call: ast.Call) -> str:
    """Empty for what is made from a message that was made elsewhere."""
    return call.args[0].value if isinstance(call.args[0], ast.Constant) else ""


def shown() -> dict[str, str]:
    """The templates of what may reach the page, and where each is."""
    return {
        template(call): place
        for place, call in made()
        if re.sub(r"\{\w+\}", "", template(call)).strip()
        if ast.unparse(call.func) == "Message" or not place.startswith(tuple(NOT_ON_THE_PAGE))
        if not place.startswith("ggufy/cli/")
    }


@pytest.mark.fast
def test_every_error_is_a_template_and_its_values() -> None:
    faults = []
    for place, call in made():
        first, given = call.args[0], {word.arg for word in call.keywords}
        if isinstance(first, ast.JoinedStr | ast.BinOp):
            faults.append(f"{place}: give the template, and as keywords what is filled in")
        elif template(call) and None not in given and holes(template(call)) - TERMINAL.keys() != given:
            faults.append(f"{place}: {template(call)} is given {sorted(map(str, given))}")
    assert not faults, "\n".join(["", *faults])


@pytest.mark.fast
def test_no_advice_stands_outside_of_a_message() -> None:
    """Where it could not be translated."""
    loose = []
    for path in sorted((ROOT / "ggufy").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        good = [node for node in nodes if isinstance(node, ast.Expr)]  # docstrings, and lines of the log
        good += [node for node in nodes if isinstance(node, ast.Call) and called(node) in KINDS]
        held = {part for node in good for part in ast.walk(node)}
        texts = {node: written(node) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant)}
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith((*NOT_ON_THE_PAGE, "ggufy/ui/texts_", "ggufy/ui/guard.py")):  # guard: no language yet
            loose += [f"{place}:{n.lineno}: {t}" for n, t in texts.items() if n not in held and ADVICE.fullmatch(t)]
    assert not loose, "\n".join(["", *loose])


@pytest.mark.fast
def test_every_message_has_its_chinese() -> None:
    lines, known = catalogue("zh"), shown()
    missing = [f"{place}: {text}" for text, place in known.items() if text not in lines]
    assert not missing, "\n".join(["add these to ggufy/ui/messages_zh.toml:", *missing])
    unused = [text for text in lines if text not in known]
    assert not unused, "\n".join(["nothing says these any more: remove or adapt them:", *unused])


@pytest.mark.fast
def test_the_chinese_is_sound() -> None:
    labels = {*TEXTS["zh"].values(), "其他"}
    for english, text in catalogue("zh").items():
        assert holes(text) == holes(english) - TERMINAL.keys(), english
        if english.endswith("."):
            assert text.endswith(("。", "}")), text
        assert not re.search(r"[\u4e00-\u9fff] ?[,;:?!(]", text), f"not full width: {text}"
        for label in re.findall("“([^”]+)”", text):
            assert label in labels, f"nothing on the page is called {label}: {text}"


@pytest.mark.fast
def test_every_place_has_a_word_for_each_of_the_terminal_s() -> None:
    assert PAGE.keys() == TERMINAL.keys()
    assert all(name.isupper() for name in TERMINAL)


@pytest.mark.fast
def test_a_message_is_text_that_knows_what_it_was_made_from() -> None:
    why = Message("version {version} is not supported", version=7)
    error = DiskError("{name} is damaged ({why}): {AGAIN}.", name=Path("a b.gguf"), why=why)
    assert str(error) == "a b.gguf is damaged (version 7 is not supported): run the same command again."
    assert error.message.values == {"name": "a b.gguf", "why": why}
    outer = GgufyError("it failed: {cause}", cause=ValueError(error.message))
    assert (
        told(outer.message, TEXTS["en"]) == "It failed: a b.gguf is damaged (version 7 is not supported): press Retry."
    )
    assert "不支持版本 7" in chinese(outer.message)


@pytest.mark.fast
@pytest.mark.parametrize("text", ["{", "}{", "{0} {name} {} \\1 %s", "{name!r} {a.b}", "no braces"])
def test_what_comes_from_outside_is_never_filled(text: str) -> None:
    assert str(GgufyError(text)) == text
    assert str(GgufyError("{name} is gone", name=text)) == f"{text} is gone"
    assert Message("{a} {b}", a="{b}", b="{a}") == "{b} {a}"
    assert chinese(text) == told(text, TEXTS["en"]) == text


def repickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


@pytest.mark.fast
def test_messages_and_errors_are_copied_whole() -> None:
    message = Message("{a}: {why}", a=1, why=Message("it is {what}", what="so"))
    error = ToolError("{name} failed", "what it printed", name="x")
    for other in (repickled(message), copy.deepcopy(message), Message.from_record(message.to_record())):
        assert (other, other.template, other.values) == (message, message.template, message.values)
        assert isinstance(other.values["why"], Message)
    other = repickled(error)
    assert (str(other), other.message.values, other.output) == ("x failed", {"name": "x"}, "what it printed")
    assert QuotaError("{n} are enough", 5.0, n=3).retry_after == 5.0


@pytest.mark.fast
@pytest.mark.parametrize(
    "record",
    [None, [], {}, {"template": "x"}, {"template": "x", "values": {"a": 3}}, {"template": "{a}{a}", "values": {}}],
)
def test_a_record_that_is_no_message(record: object) -> None:
    with pytest.raises(ValueError, match="not a message"):
        Message.from_record(record)


@pytest.mark.fast
def test_a_record_that_nests_for_ever_is_refused() -> None:
    record: object = "x"
    for _ in range(500):
        record = {"template": "{a}", "values": {"a": record}}
    with pytest.raises(ValueError, match="not a message"):
        Message.from_record(record)


@pytest.mark.fast
def test_job_records_keep_what_an_error_was_made_from() -> None:
    failure = DiskError("{path} is gone: put it back and {AGAIN}.", path="x.pth")
    job = JOB.ended(Status.FAILED, failure)
    record = json.loads(to_json(job))
    assert record["error"] == str(failure)
    assert record["error_message"] == {"template": failure.message.template, "values": {"path": "x.pth"}}
    assert told(from_json(to_json(job)).error, TEXTS["en"]) == "x.pth is gone: put it back and press Retry."
    del record["error_message"]  # as older versions wrote it
    old = from_json(json.dumps(record))
    assert old == job and chinese(old.error) == str(failure)
    assert "error_message" not in to_json(JOB)


@pytest.mark.fast
def test_folders_are_taken_out_of_values_too() -> None:
    inner = Message("{path} does not exist", path="/home/me/models/x.pth")
    told_others = without_folders(Message("{folder} is full: {why}", folder="/home/me/out", why=inner))
    assert told_others == "… is full: x.pth does not exist"
    assert isinstance(told_others, Message) and told_others.values["why"].values == {"path": "x.pth"}


@pytest.mark.fast
def test_every_template_comes_back_from_a_record() -> None:
    for text in shown():
        message = Message(text, **{name: "x" for name in holes(text) - TERMINAL.keys()})
        assert Message.from_record(json.loads(json.dumps(message.to_record()))) == message


@pytest.mark.fast
def test_no_template_looks_like_a_path() -> None:
    changed = [text for text in catalogue("zh") if without_folders(text) != text]
    assert not changed


def problem(text: str) -> str:
    return inspect(text, Settings.from_env({})).problem


def test_a_damaged_gguf(tmp_path: Path) -> None:
    path = tmp_path / "模型.gguf"
    path.write_bytes(b"GGUF" + b"\x07" + bytes(40))
    assert chinese(problem(str(path))) == "模型.gguf 不是完好的 GGUF 文件（不支持版本 7）：请重新下载或转换。"
    path.write_bytes(b"GGUF\x03")
    assert chinese(problem(str(path))) == "模型.gguf 不是完好的 GGUF 文件（文件头不完整）：请重新下载或转换。"


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    path, _ = tiny.checkpoint(tmp_path, "7")
    path.write_bytes(path.read_bytes()[:2000])
    assert chinese(problem(str(path))) == f"{path.name} 不完整或已损坏：请重新下载或复制。"
    gone = tmp_path / "gone (1), it.pth"
    assert chinese(problem(str(gone))).startswith(f"{gone} 不存在：请填写 .pth 文件")


def test_a_broken_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("1 'a' 1\n3 'b' 1\n")
    with pytest.raises(GgufyError) as caught:
        load_vocab(path)
    said = "own.txt 第 2 行的 id 是 3，应为 2：请在“自带词表”中填写 RWKV 词表格式的文件。"
    assert chinese(caught.value.message) == said


def test_options_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(GgufyError) as caught:
        parse_types("Q4_K_X")
    near = re.findall(r"Q\d\w+", str(caught.value).partition(":")[2])
    assert chinese(caught.value.message) == f"未知的量化类型 'Q4_K_X'：是不是 {', '.join(near)}？"
    with pytest.raises(GgufyError) as caught:
        ChatSettings.checked(length=0.5)
    assert chinese(caught.value.message).startswith("length 必须是 ")
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(GgufyError) as caught:
        pin_text(str(tmp_path / "short.txt"), tmp_path)
    assert "short.txt 太短（9 B）：至少需要 1,024 个词元" in chinese(caught.value.message)


@pytest.mark.fast
@pytest.mark.parametrize("quoted", ["", "Storage limit reached (for free accounts): pay"])
def test_what_the_hub_answers(quoted: str) -> None:
    """With its own words, which nobody can translate, or without."""
    request = httpx2.Request("POST", "https://huggingface.co/api/models/owner/repo/commit/main")
    headers = {"X-Error-Message": quoted} if quoted else {}
    response = httpx2.Response(413, request=request, headers=headers, content=json.dumps({}))
    error = hub_error(HfHubHTTPError("", response=response), "owner/repo", "model")
    said = f"（{quoted}）" if quoted else ""
    assert chinese(error.message).startswith(
        f"Hub 上没有存放 owner/repo 的空间{said}：请在 https://huggingface.co/settings/billing "
    )


@pytest.mark.fast
def test_chinese_closes_up_round_chinese() -> None:
    """Blanks stand round what is not Chinese, whatever a file is called."""
    ours = hub_error(ValueError(), Message("your account"), "model").message
    assert chinese(ours) == "Hub 关于你的账号的回答已损坏：稍后会再试，不会丢失任何内容。"
    theirs = GgufyError("{path} is gone, so it cannot be uploaded: make it again.", path="your account").message
    assert chinese(theirs) == "your account 已不存在，无法上传：请重新制作。"
    bug = sentence_of(OSError(GgufyError("{path} is a folder: give the path of a .pth file.", path="模型").message))
    assert chinese(bug) == "发生了意外错误，请反馈给我们：OSError：模型 是文件夹：请填写 .pth 文件的路径。"
