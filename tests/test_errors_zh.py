"""Every error has its Chinese: found by reading the source, and by raising real ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from ggufy.core.catalog import parse_types
from ggufy.core.errors import GgufyError
from ggufy.models.vocab import load_vocab
from ggufy.net.hub_errors import hub_error
from ggufy.service.conversations import ChatSettings
from ggufy.sources.inspect import inspect
from ggufy.system.settings import Settings
from ggufy.texts.calibration import pin_text
from ggufy.ui.errors_zh import Row, find, rows, say
from ggufy.ui.i18n import TEXTS
from ggufy.ui.texts_zh import ZH
from ggufy.ui.views import told
from tests import tiny
from tests.error_texts import HOLE, Sentence, literals, sentences, untold

# Where errors never reach the page, and why.
NOT_ON_THE_PAGE = {
    "ggufy/cli/main.py": "for the terminal",
    "ggufy/system/settings.py": "ends the program before there is a page",
    "ggufy/ui/api.py": "for programs, which get English",
    "ggufy/ui/server.py": "ends the program before there is a page",
}
SHOWN = [sentence for sentence in sentences() if sentence.place.rpartition(":")[0] not in NOT_ON_THE_PAGE]
ADVICE = (
    "\nGive each of them its Chinese: two lines in ggufy/ui/errors_zh_sources.py (sources, vocabularies, GGUF files), "
    "errors_zh_hub.py (the Hub and its repos), errors_zh_tools.py (llama.cpp) or errors_zh_jobs.py (all else): the "
    "English one with a {name} for every hole, and below it, indented by four, the Chinese one with the same holes. "
    "⟦…⟧ is what the program fills in. A phrase that is put into several sentences may have lines of its own."
)
ENGLISH = re.compile("[a-z]{2,} [a-z]{2,}")


def fault(sentence: Sentence) -> str:
    """What is wrong with the Chinese of a sentence; empty if nothing is."""
    chinese = say(sentence.text, "zh")
    if chinese == sentence.text:
        return "no Chinese is known"
    if lost := [hole for hole in HOLE.findall(sentence.text) if hole not in chinese]:
        return f"the Chinese lacks {lost[0]}: {chinese}"
    for words in ENGLISH.findall(HOLE.sub("⟦⟧", chinese)):
        if not any(words in row.chinese for row in rows()):  # it may hold a command
            return f"“{words}” is still English: {chinese}"
    return ""


def test_every_error_has_its_chinese() -> None:
    faults = [f"{sentence.place}: {sentence.text}\n    {said}" for sentence in SHOWN if (said := fault(sentence))]
    assert not faults, "\n".join(["", *dict.fromkeys(faults)]) + ADVICE


def test_the_text_of_every_error_can_be_found() -> None:
    """Otherwise the test above would not see it."""
    assert not untold(), f"{untold()}: let the text be a string there, or come from a function that returns `-> str`"
    texts = {sentence.text for sentence in SHOWN}
    assert len(texts) > 400
    for text in (
        "the checkpoint has no tensor ⟦source⟧: "
        "the checkpoint is damaged, or a variety of RWKV that ggufy does not know.",  # a constant
        "⟦self.name⟧ is not a sound GGUF file (it ends in the middle of its head): fetch or convert it again.",
        "only its owner may chat on this Space: duplicate the Space, or run ggufy on your own machine.",
        "another run is downloading ⟦target.name⟧: wait for it to end.",  # passed to lock()
    ):
        assert text in texts


def used(text: str) -> set[Row]:
    """The rows that make the Chinese of a sentence."""
    if (found := find(text)) is None:
        return set()
    row, holes = found
    return {row}.union(*(used(value) for value in holes.values()))


def test_no_row_is_for_a_sentence_that_is_gone() -> None:
    alive = set().union(*(used(text) for text in {sentence.text for sentence in SHOWN} | literals()))
    dead = [row.english for row in rows() if row not in alive]
    assert not dead, "\n".join(["nothing in the source says this any more: remove it, or adapt it", *dead])


def test_rows_are_sound() -> None:
    seen: set[str] = set()
    for row in rows():
        assert sorted(row.holes) == sorted(re.findall(r"\{(\w+)\}", row.chinese)), row.english
        assert len(row.holes) == len(set(row.holes)), row.english
        assert all(row.literals[1:-1]), f"two holes without anything between them: {row.english}"
        shape = "{}".join(row.literals)
        assert shape not in seen, f"there twice: {row.english}"
        seen.add(shape)
        if row.english.endswith("."):
            assert row.chinese.endswith(("。", "}")), row.chinese
        assert not re.search(r"[\u4e00-\u9fff] ?[,;:?!(]", row.chinese), f"not full width: {row.chinese}"


def test_the_chinese_names_what_is_on_the_page() -> None:
    """Quoted words are labels."""
    labels = {*ZH.values(), "其他"}
    for row in rows():
        for label in re.findall("“([^”]+)”", row.chinese):
            assert label in labels, row.chinese


def problem(text: str) -> str:
    return inspect(text, Settings.from_env({})).problem


def test_a_damaged_gguf(tmp_path: Path) -> None:
    path = tmp_path / "模型.gguf"
    path.write_bytes(b"GGUF" + b"\x07" + bytes(40))
    assert say(problem(str(path)), "zh") == "模型.gguf 不是完好的 GGUF 文件（不支持版本 7）：请重新下载或转换。"
    path.write_bytes(b"GGUF\x03")
    assert say(problem(str(path)), "zh") == "模型.gguf 不是完好的 GGUF 文件（文件头不完整）：请重新下载或转换。"


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    path, _ = tiny.checkpoint(tmp_path, "7")
    path.write_bytes(path.read_bytes()[:2000])
    assert say(problem(str(path)), "zh") == f"{path.name} 不完整或已损坏：请重新下载或复制。"
    gone = tmp_path / "gone (1), it.pth"
    assert say(problem(str(gone)), "zh").startswith(f"{gone} 不存在：请填写 .pth 文件")


def test_a_broken_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("1 'a' 1\n3 'b' 1\n")
    with pytest.raises(GgufyError) as caught:
        load_vocab(path)
    said = "own.txt 第 2 行的 id 是 3，应为 2：请在“自带词表”中填写 RWKV 词表格式的文件。"
    assert say(str(caught.value), "zh") == said


def test_wishes_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(GgufyError) as caught:
        parse_types("Q4_K_X")
    near = re.findall(r"Q\d\w+", str(caught.value).partition(":")[2])
    assert say(str(caught.value), "zh") == f"未知的量化类型 'Q4_K_X'：是不是 {', '.join(near)}？"
    with pytest.raises(GgufyError) as caught:
        ChatSettings.checked(length=0.5)
    assert say(str(caught.value), "zh").startswith("length 必须是 ")
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(GgufyError) as caught:
        pin_text(str(tmp_path / "short.txt"), tmp_path)
    assert "short.txt 太短（9 B）：至少需要 1,024 个词元" in say(str(caught.value), "zh")


@pytest.mark.parametrize("quoted", ["", "Storage limit reached (for free accounts): pay"])
def test_what_the_hub_answers(quoted: str) -> None:
    """With its own words, which nobody can translate, or without."""
    request = httpx2.Request("POST", "https://huggingface.co/api/models/owner/repo/commit/main")
    headers = {"X-Error-Message": quoted} if quoted else {}
    response = httpx2.Response(413, request=request, headers=headers, content=json.dumps({}))
    text = str(hub_error(HfHubHTTPError("", response=response), "owner/repo", "model"))
    said = f"（{quoted}）" if quoted else ""
    assert say(text, "zh").startswith(
        f"Hub 上没有存放 owner/repo 的空间{said}：请在 https://huggingface.co/settings/billing "
    )


def test_holes_keep_what_they_hold() -> None:
    name = r"a{0} {name} \1: is a folder, {} (of 中文) %s"
    text = f"{name} is a folder: give the path of a .pth file."
    assert say(text, "zh") == f"{name} 是文件夹：请填写 .pth 文件的路径。"
    nested = f"unexpected error, please report it: OSError: {text}"
    assert say(nested, "zh") == f"发生了意外错误，请反馈给我们：OSError：{say(text, 'zh')}"
    theirs = "a file is gone, so it cannot be uploaded: make it again."
    assert say(theirs, "zh") == "a file 已不存在，无法上传：请重新制作。"
    ours = "the Hub's answer about your account arrived damaged: it is tried again later, nothing is lost."
    assert say(ours, "zh") == "Hub 关于你的账号的回答已损坏：稍后会再试，不会丢失任何内容。"


def test_what_nobody_knows_stays_english() -> None:
    for text in ("", "something else", "x is empty", "it is cut off", "{name} {", "它已经是中文。"):
        assert say(text, "zh") == text
    text = "x.pth is a folder: give the path of a .pth file."
    assert say(text, "en") == text
    assert say(text, "fr") == text


def test_a_sentence_that_is_made_to_be_hard() -> None:
    """It comes to an end at once, and does not nest for ever."""
    text = "x holds " * 300 + " files, choose one, for example " * 300 + "; there are " * 300
    assert say(text, "zh") == text
    deep = "GGUFY_LLAMA_DIR is " * 500 + ", which has no x: y." * 500
    assert say(deep, "zh").startswith("GGUFY_LLAMA_DIR 是 GGUFY_LLAMA_DIR ")


def test_the_page_tells_errors_in_the_visitor_s_language() -> None:
    text = "own.txt arrived damaged (its size is another) and was removed: run the same command again."
    assert told(text, TEXTS["en"]).endswith("was removed: press Retry.")
    assert told(text, TEXTS["zh"]) == "下载的 own.txt 已损坏（大小不符），已经删除：请点“重试”。"
