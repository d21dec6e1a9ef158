"""Sources on ModelScope, against a local one: what is particular to it. Downloads that survive everything are in
test_hub_source.py."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import torch

from ggufy.core.errors import SourceError, UsageError
from ggufy.core.job import Job
from ggufy.core.job_record import from_json, to_json
from ggufy.core.source import Source
from ggufy.formats.checkpoint import open_checkpoint
from ggufy.formats.streamed_checkpoint import WantedTensor, open_streamed
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import file_stem
from ggufy.jobs.workspace import connect
from ggufy.net import modelscope
from ggufy.net import session as hub_session
from ggufy.net.http_file import HttpFile
from ggufy.net.http_get import source_address
from ggufy.net.session import Reference
from ggufy.publish.links import repo_page
from ggufy.service.strangers import for_stranger
from ggufy.sources import hub
from ggufy.sources.adapter import AdapterSearch, AdapterWish, adapters_label, pin_adapters
from ggufy.sources.inspect import inspect
from ggufy.sources.locate import is_plain_url
from ggufy.sources.registry import format_of
from ggufy.system.files import sha256
from ggufy.system.settings import HUBS, Settings
from ggufy.ui.file_rows import file_link
from tests import tiny
from tests.modelscope_fixture import (  # noqa: F401 - a fixture
    MS_ALICE,
    MS_BOB,
    LocalModelScope,
    local_modelscope,
)
from tests.test_job import REQUEST

DATA = random.Random(1).randbytes(2_000_000)
NUMBERS = itertools.count()
READ = ("/api/v1/models/", "/__cdn/")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, local_modelscope: LocalModelScope) -> None:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(modelscope, "_ODD_S", 0.01)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", local_modelscope.endpoint)
    local_modelscope.mend()


@pytest.fixture
def repo(local_modelscope: LocalModelScope) -> str:
    """A repo of the test's own, with one checkpoint."""
    repo = f"alice/model-{next(NUMBERS)}"
    local_modelscope.put(repo, "model.pth", DATA)
    local_modelscope.clear()
    return repo


def settings(tmp_path: Path, **more: str) -> Settings:
    return Settings.from_env({"HOME": str(tmp_path), **more})


# ---- what is meant


def test_a_model_is_pinned_to_a_commit_and_a_digest(local_modelscope: LocalModelScope, repo: str) -> None:
    first = hub.resolve(f"ms:{repo}")
    put = local_modelscope.put(repo, "model.pth", DATA[::-1])
    second = hub.resolve(f"ms:{repo}:model.pth")
    assert (second.model_id, second.revision, second.sha256) == (f"ms:{repo}", put["sha"], put["oid"])
    assert (second.size, second.public, second.host, second.remote) == (len(DATA), True, "ms", True)
    assert first.revision != second.revision and hub.resolve(f"ms:{repo}@{first.revision}") == first
    assert second.can_stream and second.key == put["oid"]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/files",
        "/summary",
        "/file/view/master/model.pth?status=2",
        "/resolve/master/model.pth",
        "/resolve/{sha}/model.pth",
        "/repo?Revision=master&FilePath=model.pth",
    ],
)
def test_addresses_of_the_site_are_understood(local_modelscope: LocalModelScope, path: str) -> None:
    put = local_modelscope.put("alice/address", "model.pth", DATA)
    address = f"{local_modelscope.endpoint}/models/alice/address{path.format(**put)}"
    assert hub.is_reference(address) and not is_plain_url(address)
    found = hub.resolve(address)
    assert (found.model_id, found.path, found.revision) == ("ms:alice/address", "model.pth", put["sha"])


def test_the_real_site_is_known_by_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    wanted = hub.parse_reference("https://www.modelscope.cn/models/Blink_DL/rwkv7-g1/file/view/master/a%20b.pth")
    assert wanted == Reference(repo_id="Blink_DL/rwkv7-g1", host="ms", file="a b.pth", revision="master")
    assert wanted.page == "https://modelscope.cn/models/Blink_DL/rwkv7-g1"
    assert hub.parse_reference("https://modelscope.cn/models/o/n").name == "ms:o/n"
    with pytest.raises(SourceError, match=r"set MODELSCOPE_ENDPOINT to https://www\.modelscope\.ai"):
        hub.parse_reference("https://www.modelscope.ai/models/o/n")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "www.modelscope.ai/")
    assert hub.parse_reference("https://modelscope.ai/models/o/n").page == "https://www.modelscope.ai/models/o/n"


@pytest.mark.parametrize(
    "text",
    ["ms:repo", "ms:a/b/c", "ms:", "https://modelscope.cn/datasets/a/b", "https://modelscope.cn/models/a"],
)
def test_other_texts_are_refused_in_one_sentence(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    with pytest.raises(SourceError, match="write "):
        hub.parse_reference(text)


def test_several_checkpoints_are_listed_by_names_that_can_be_typed(local_modelscope: LocalModelScope) -> None:
    local_modelscope.put("alice/many", "a.pth", DATA)
    local_modelscope.put("alice/many", "sub/b.pth", DATA)
    with pytest.raises(SourceError, match=r"ms:alice/many holds 2 \.pth files, .* example ms:alice/many:a\.pth;"):
        hub.resolve("ms:alice/many")
    assert hub.resolve("ms:alice/many:sub/b.pth").path == "sub/b.pth"
    with pytest.raises(SourceError, match=r"ms:alice/many has no file c\.pth: it holds a\.pth"):
        hub.resolve("ms:alice/many:c.pth")


def test_a_missing_repo_revision_and_site_are_one_sentence_each(repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        SourceError, match=r"^ModelScope has no model nobody/nothing, or it is private: .*API_TOKEN\.$"
    ):
        hub.resolve("ms:nobody/nothing")
    with pytest.raises(SourceError, match=rf"^ms:{repo} has no revision main: look at "):
        hub.resolve(f"ms:{repo}@main")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"^ModelScope cannot be reached \(.+\): check the network"):
        hub.resolve("ms:alice/any")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "ftp://127.0.0.1")
    with pytest.raises(SourceError, match=r"^MODELSCOPE_ENDPOINT is ftp://127.0.0.1, which cannot be used"):
        hub.resolve("ms:alice/any")


def test_a_commit_that_is_not_told_in_full_is_found_beside_its_files() -> None:
    head, older = "83ee97c66e841048bedc5c02c15ce2f3ed259feb", "f194f50981eaaa6019bbec5049a4c7e1fd294110"
    files = [{"Revision": older}, {"Revision": head}, {}]
    assert modelscope._commit({"LatestCommitter": {"Id": "", "ShortId": head[:8]}}, files) == head
    assert modelscope._commit({"LatestCommitter": {"Id": head}}, []) == head
    assert modelscope._commit({"LatestCommitter": {"ShortId": "00000000"}}, files) == ""  # it has only deleted some
    assert modelscope._commit({"LatestCommitter": None}, files) == modelscope._commit({}, files) == ""


@pytest.mark.parametrize(
    "entry",
    [
        {"Path": "../a.pth"},
        {"Path": "/a.pth"},
        {"Path": "a\\b"},
        {"Path": 7},
        {"Size": -1},
        {"Size": "1"},
        {"Sha256": "../../x"},
        {"Type": "tree"},
    ],
)
def test_what_a_list_says_of_a_file_is_not_trusted(entry: dict[str, object]) -> None:
    sound = {"Path": "a/b.pth", "Size": 1, "Sha256": "ab" * 32, "Type": "blob", "IsLFS": True}
    assert modelscope._file(sound) is not None
    assert modelscope._file(sound | entry) is None


def test_a_list_that_was_cut_is_made_whole_folder_by_folder(local_modelscope: LocalModelScope, repo: str) -> None:
    local_modelscope.put(repo, "zoo/last.pth", DATA)
    for folder, count in (("a", 1800), ("b/c", 1800), ("b/d", 1900)):
        local_modelscope.fill(repo, folder, count)
    local_modelscope.clear()
    tree = modelscope.repo_tree(Reference(repo_id=repo, host="ms"), token=None)
    assert len(tree.files) == 5502 and {"model.pth", "zoo/last.pth", "b/d/01899.txt"} <= tree.files.keys()
    asked = [(query.get("Root", ""), query["Recursive"]) for _, query in local_modelscope.paths("/repo/files")]
    expected = [("", "True"), ("", "False"), ("a", "True"), ("b", "True"), ("b", "False")]
    assert asked == [*expected, ("b/c", "True"), ("b/d", "True"), ("zoo", "True")]


def test_a_refusal_for_nothing_is_asked_again_and_a_real_one_told(
    local_modelscope: LocalModelScope, repo: str
) -> None:
    local_modelscope.fault("GET .*/repo/files", status=403, times=2)
    assert hub.resolve(f"ms:{repo}").path == "model.pth"
    local_modelscope.fault("GET .*/repo/files", status=403, times=9)
    with pytest.raises(SourceError, match=rf"ModelScope does not show {repo} to this account"):
        hub.resolve(f"ms:{repo}")


# ---- who may read it, and who hears the token


def test_the_token_and_the_cookie_go_to_the_site_and_nowhere_else(
    local_modelscope: LocalModelScope, tmp_path: Path
) -> None:
    local_modelscope.put("alice/secret", "model.pth", DATA, private=1)
    for token in (None, MS_BOB):
        with pytest.raises(SourceError, match="ModelScope has no model alice/secret, or it is private"):
            hub.resolve("ms:alice/secret", token=token)
    with pytest.raises(SourceError, match="ModelScope does not know the token"):
        hub.resolve("ms:alice/secret", token="ms-unknown")
    local_modelscope.clear()
    found = hub.resolve("ms:alice/secret", token=MS_ALICE)
    assert not found.public
    hub.download(found, tmp_path / "model.pth", token=MS_ALICE)
    assert (tmp_path / "model.pth").read_bytes() == DATA
    sent = {(line["token"], line["cookie"]) for line in local_modelscope.log("/api/")}
    assert sent == {(MS_ALICE, f"m_session_id={MS_ALICE}")}
    (large,) = local_modelscope.log("/__cdn/")
    assert (large["token"], large["cookie"]) == ("", "") and large["host"].startswith("localhost:")


def test_a_gated_model_is_not_public_and_says_where_to_ask(local_modelscope: LocalModelScope, tmp_path: Path) -> None:
    local_modelscope.put("alice/gate", "model.pth", DATA, gated=1)
    found = hub.resolve("ms:alice/gate", token=MS_BOB)
    assert not found.public
    with pytest.raises(SourceError, match=r"does not show alice/gate to this account: look at .*/models/alice/gate"):
        hub.download(found, tmp_path / "model.pth", token=MS_BOB)
    hub.download(found, tmp_path / "model.pth", token=MS_ALICE)
    assert inspect("ms:alice/gate", settings(tmp_path)).gated


def test_only_the_site_and_its_two_hosts_for_uploads_are_its_own() -> None:
    headers, origins = modelscope.identity("a token", "https://www.modelscope.cn")
    own = [f"https://{host}" for host in ("www.modelscope.cn", "lfs.modelscope.cn", "pre-lfs.modelscope.cn")]
    others = ["https://cdn-lfs-cn-1.modelscope.cn", "https://modelscope.cn.example.org", "http://lfs.modelscope.cn"]
    others += ["https://lfs.modelscope.cn:8443", "https://modelscope.oss-cn-beijing.aliyuncs.com"]
    for url in (*own, *others):
        request = httpx2.Request("GET", f"{url}/a", headers={"Cookie": "left=over"})
        hub_session.identify(request, headers, origins)
        assert (request.headers.get("Authorization") == "Bearer a token") is (url in own), url
        assert request.headers.get("Cookie") == ("m_session_id=a token" if url in own else None), url
    assert modelscope.identity(None)[0] == {}


def test_each_hub_gets_its_own_token_and_strangers_have_none(tmp_path: Path) -> None:
    both = settings(tmp_path, HF_TOKEN="hf_one_token", MODELSCOPE_API_TOKEN=" 'ms-another' ")
    assert (both.token_for(""), both.token_for("ms")) == ("hf_one_token", "ms-another")
    assert "ms-another" not in repr(both) and "ms-another" not in str(UsageError("{a}", a="it is ms-another"))
    stranger = both.for_strangers()
    assert (stranger.token_for(""), stranger.token_for("ms")) == (None, None)
    with pytest.raises(UsageError, match="^MODELSCOPE_API_TOKEN holds a character"):
        settings(tmp_path, MODELSCOPE_API_TOKEN="to ken")


def test_strangers_may_use_its_models_under_names_of_their_own() -> None:
    assert for_stranger(JobOptions(source="ms:alice/model", quant_types=())).source == "ms:alice/model"
    stems = {file_stem("m.pth", name, by_stranger=True) for name in ("alice/model", "ms:alice/model")}
    assert stems == {"alice-m", "ms.alice-m"}


# ---- parts of it


def test_a_checkpoint_is_read_by_ranges_and_a_signed_address_is_renewed(
    local_modelscope: LocalModelScope, repo: str
) -> None:
    source = hub.resolve(f"ms:{repo}")
    local_modelscope.clear()
    file = HttpFile(source_address(source, token=None), source)
    assert file.read(5, 1000) == DATA[5:1000]
    assert file.read(1_000_000, 1_500_000) == DATA[1_000_000:1_500_000]
    assert len(local_modelscope.log("/repo")) == 1, "the address was asked for again"
    local_modelscope.expire()
    assert file.read(0, 10) == DATA[:10]
    assert [line["status"] for line in local_modelscope.log("/__cdn/")] == [206, 206, 403, 206]


def test_a_download_asks_for_a_new_address_when_the_old_one_has_expired(
    local_modelscope: LocalModelScope, repo: str, tmp_path: Path
) -> None:
    source = hub.resolve(f"ms:{repo}")
    local_modelscope.fault("GET /__cdn/", cut=1_000_000)
    hub.download(source, tmp_path / "model.pth", progress=lambda done: local_modelscope.expire() if done else None)
    assert (tmp_path / "model.pth").read_bytes() == DATA
    keys = {query["auth_key"] for _, query in local_modelscope.paths("/__cdn/")}
    assert len(keys) == 2


def test_a_tiny_model_is_inspected_and_streamed_without_being_downloaded(
    local_modelscope: LocalModelScope, tmp_path: Path
) -> None:
    path, _ = tiny.checkpoint(tmp_path, "7", width=512, layers=3)
    local_modelscope.put("alice/tiny", "tiny.pth", path.read_bytes(), license="Apache License 2.0")
    local_modelscope.clear()
    report = inspect("ms:alice/tiny", settings(tmp_path))
    assert not report.problem or "vocab" in report.problem, report.problem
    assert (report.model_id, report.version, report.layers) == ("ms:alice/tiny", "7", 3)
    assert (report.license, report.streams, report.gated) == ("apache-2.0", True, False)
    assert 0 < report.received < path.stat().st_size
    source = hub.resolve("ms:alice/tiny")
    streamed, whole = open_streamed(source), open_checkpoint(path)
    names = sorted(streamed.shapes)
    assert names == sorted(whole.shapes)
    for name, values in zip(names, streamed.stream(WantedTensor(name, False) for name in names), strict=True):
        assert torch.equal(values, whole.tensor(name)), name
    assert all(line["status"] in (200, 206, 302) for line in local_modelscope.log())


def test_another_file_under_the_same_commit_is_noticed_while_it_is_streamed(
    local_modelscope: LocalModelScope, repo: str
) -> None:
    source = replace(hub.resolve(f"ms:{repo}"), sha256="cd" * 32)
    with pytest.raises(SourceError, match=r"the server sends another file than model\.pth of commit"):
        HttpFile(source_address(source, token=None), source).read(0, 10)


# ---- small files, which come whole


@pytest.fixture
def small(local_modelscope: LocalModelScope) -> Source:
    """A small file of a repo, which is no large file there, as if it belonged to a model."""
    repo = f"alice/small-{next(NUMBERS)}"
    put = local_modelscope.put(repo, "config.json", b'{"hidden_size": 512}' * 9000, lfs=0)
    local_modelscope.clear()
    return Source(
        kind="checkpoint", path="config.json", size=180_000, sha256=put["oid"], model_id=f"ms:{repo}",
        revision=put["sha"],
    )  # fmt: skip


def test_a_small_file_that_was_cut_begins_anew(
    local_modelscope: LocalModelScope, small: Source, tmp_path: Path
) -> None:
    (tmp_path / "config.json.download").write_bytes(b"{")
    local_modelscope.fault("GET .*/repo$", cut=100)
    hub.download(small, tmp_path / "config.json")
    assert (tmp_path / "config.json").read_bytes() == b'{"hidden_size": 512}' * 9000
    assert {line["range"] for line in local_modelscope.log("/repo")} == {""}


def test_a_missing_file_is_no_file_although_its_answer_says_so(
    local_modelscope: LocalModelScope, small: Source, repo: str, tmp_path: Path
) -> None:
    for source in (replace(small, path="gone.json"), replace(hub.resolve(f"ms:{repo}"), path="gone.pth")):
        with pytest.raises(SourceError, match=r"the server sends another file than gone\."):
            hub.download(source, tmp_path / source.path)
        assert not (tmp_path / source.path).exists()
    assert {line["status"] for line in local_modelscope.log("/repo") if "gone" in line["query"]} == {200}


# ---- records


def test_a_record_says_where_its_source_is_and_older_ones_load(repo: str) -> None:
    source = hub.resolve(f"ms:{repo}")
    job = Job(request=replace(REQUEST, source=source))
    assert from_json(to_json(job)) == job and json.loads(to_json(job))["request"]["source"]["model_id"] == f"ms:{repo}"
    elsewhere = replace(source, model_id="alice/elsewhere", revision="ab" * 20)
    assert elsewhere.host == "" and replace(job.request, source=elsewhere).job_id == job.id  # the same bytes


def test_a_job_goes_to_each_hub_under_its_account_there_and_older_ids_stay() -> None:
    one = REQUEST if REQUEST.repo_id else replace(REQUEST, repo_id="alice/m-GGUF")
    both = replace(one, copies=("ms:alice_cn/m-GGUF",))
    alone = replace(one, repo_id="ms:alice_cn/m-GGUF")
    assert len({one.job_id, both.job_id, alone.job_id}) == 3 and one.inputs() == both.inputs() == alone.inputs()
    assert both.repos == (one.repo_id, "ms:alice_cn/m-GGUF") and replace(one, repo_id="").repos == ()
    assert both.shares_repo(one) and both.shares_repo(alone) and not one.shares_repo(alone)
    told = json.loads(to_json(Job(request=one)))
    assert "copies" not in told["request"] and from_json(json.dumps(told)).request == one
    assert from_json(to_json(Job(request=both))).request == both
    told["request"]["copies"] = ["ms:../../x"]
    with pytest.raises(ValueError, match="is no repo"):
        from_json(json.dumps(told))


def test_the_page_links_to_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    page = repo_page("ms:alice/m-GGUF")
    assert page == "https://modelscope.cn/models/alice/m-GGUF"
    assert file_link("j", "m-Q8_0.gguf", repo=page) == f"{page}/resolve/master/m-Q8_0.gguf"
    page = repo_page("alice/m-GGUF")
    assert file_link("j", "a b.gguf", repo=page) == "https://huggingface.co/alice/m-GGUF/resolve/main/a%20b.gguf"


def test_a_setting_names_one_place_or_two(tmp_path: Path) -> None:
    assert [settings(tmp_path, GGUFY_HUB=hub).hub for hub in HUBS] == list(HUBS)
    with pytest.raises(UsageError, match="one of local, hf, modelscope, hf,modelscope"):
        settings(tmp_path, GGUFY_HUB="both")
    with pytest.raises(UsageError, match="set MODELSCOPE_API_TOKEN, or leave modelscope out"):
        connect(settings(tmp_path, GGUFY_HUB="modelscope", GGUFY_OUT=str(tmp_path)))


def test_an_adapter_may_lie_there_too(local_modelscope: LocalModelScope, tmp_path: Path) -> None:
    adapter = {
        "blocks.0.att.receptance.lora_A": torch.zeros(4, 64),
        "blocks.0.att.receptance.lora_B": torch.zeros(64, 4),
    }
    torch.save(adapter, tmp_path / "adapter.pth")
    local_modelscope.put("alice/adapter", "adapter.pth", (tmp_path / "adapter.pth").read_bytes(), private=1)
    own = settings(tmp_path, MODELSCOPE_API_TOKEN=MS_ALICE)
    search = AdapterSearch(own, sha256, lambda: False)
    wish = AdapterWish(texts=("ms:alice/adapter:2",), alpha=None, init="")
    ((pinned, _),) = pin_adapters(wish, search, format_of("checkpoint"))
    assert (pinned.source.model_id, pinned.scale, pinned.source.public) == ("ms:alice/adapter", 2.0, False)
    assert adapters_label([(pinned, None)], by_stranger=True) == "-ms.alice-adapter"
    with pytest.raises(SourceError, match="or it is private"):
        pin_adapters(wish, AdapterSearch(own.for_strangers(), sha256, lambda: False), format_of("checkpoint"))
