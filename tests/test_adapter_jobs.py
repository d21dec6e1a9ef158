"""Adapters in jobs: pinned, fetched from the Hub, merged while the model streams, said on the card."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from ggufy import demo
from ggufy.core.errors import SourceError, UsageError
from ggufy.core.job import Job
from ggufy.core.job_record import from_json, to_json
from ggufy.core.source import PinnedAdapter, Source
from ggufy.formats import prefetched as streamed
from ggufy.formats.checkpoint import open_checkpoint
from ggufy.formats.streamed_checkpoint import open_streamed
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.models.convert import convert
from ggufy.models.convert_streamed import convert_streamed
from ggufy.models.layouts import origins_of
from ggufy.models.merge import merge_adapters
from ggufy.net import session as hub_session
from ggufy.publish.card import CardFacts, card
from ggufy.service.access import is_public
from ggufy.sources import hub
from ggufy.sources.adapter import AdapterSearch, AdapterWish, pin_adapters
from ggufy.sources.adapter_files import drop_fetched, fetch_adapter, opened_adapters
from ggufy.sources.rwkv_pth import RwkvPth
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from tests import adapters, tiny
from tests.conftest import Ggufy
from tests.hub_fixture import ALICE, LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.test_job import REQUEST

STATE = tiny.weights("7", width=256)
LORA = adapters.lora(STATE) | {"blocks.1.ln1.weight": torch.full((256,), 2.0)}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, local_hub: LocalHub) -> Iterator[None]:
    """The Hub is the test's, and patience short."""
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(hub_session, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(streamed, "PIECE", 100_000)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", local_hub.endpoint)
    template = local_hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield
    local_hub.mend()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and its vocabulary."""
    folder = tmp_path_factory.mktemp("model")
    return tiny.save(folder / "rwkv-7.pth", STATE), tiny.write_vocab(folder / "vocab.txt")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("adapter") / "poems.pth", LORA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = adapters.lora(STATE, seed=3, end=".weight")
    return adapters.save_folder(tmp_path_factory.mktemp("peft") / "chat-adapter", named)


@pytest.fixture(scope="module")
def merged(model: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The F32 GGUF of the model that torch merges with scale 2."""
    place = tmp_path_factory.mktemp("merged")
    source = tiny.save(place / "m.pth", adapters.merged(STATE, LORA, 2.0))
    convert(source, place / "m.gguf", outtype="f32", vocab=model[1], name="x")
    return (place / "m.gguf").read_bytes()


def settings(tmp_path: Path) -> Settings:
    return dataclasses.replace(Settings.from_env({}), out=tmp_path / "out", cache=tmp_path / "cache")


def wish(model: tuple[Path, Path], *texts: str, **options: object) -> JobOptions:
    usual = {"source": str(model[0]), "vocab": str(model[1]), "quant_types": (), "imatrix": "none", "lora": texts}
    return JobOptions(**usual | options)  # type: ignore[arg-type]


# ---- streams


def test_a_merged_model_streams_and_goes_on_where_it_was_cut(
    local_hub: LocalHub, tmp_path: Path, model: tuple[Path, Path], lora: Path, merged: bytes
) -> None:
    local_hub.put("alice/base", "model.pth", model[0].read_bytes())
    source = hub.resolve("alice/base")
    search = AdapterSearch(settings(tmp_path))

    def run(scale: float) -> int:
        (one,) = pin_adapters(AdapterWish(texts=(f"{lora}:{scale}",)), search, RwkvPth())
        remote = open_streamed(source)
        with opened_adapters([one[0]], tmp_path, search) as opened:
            origins = merge_adapters(origins_of(remote.shapes), opened)
            target, mark = tmp_path / "x.gguf", one[0].key
            convert_streamed(remote, origins, target, outtype="f32", vocab=model[1], name="x", mark=mark)
        return remote.received

    def cut(scale: float) -> None:
        local_hub.fault("GET /__cdn/", status=502, skip=40, times=9999)
        with pytest.raises(SourceError, match="HTTP status 502"):
            run(scale)
        assert (tmp_path / "x.gguf.part").stat().st_size > len(merged) // 4
        local_hub.mend()

    cut(2)
    assert run(2) < source.size, "what is whole is not fetched again"
    assert (tmp_path / "x.gguf").read_bytes() == merged
    (tmp_path / "x.gguf").unlink()
    cut(1)
    run(2)
    assert (tmp_path / "x.gguf").read_bytes() == merged, "nothing of another scale is left"


# ---- the Hub


def test_adapters_of_the_hub_are_pinned_and_fetched(
    local_hub: LocalHub, tmp_path: Path, model: tuple[Path, Path], lora: Path, folder: Path
) -> None:
    local_hub.put("alice/poems", "poems.pth", lora.read_bytes())
    local_hub.put("alice/poems", "chat/adapter_config.json", (folder / "adapter_config.json").read_bytes())
    local_hub.put("alice/poems", "chat/adapter_model.safetensors", (folder / "adapter_model.safetensors").read_bytes())
    search = AdapterSearch(settings(tmp_path))
    texts = ("alice/poems:poems.pth:2", "alice/poems:chat")
    (first, second), local = (
        [one for one, _ in pin_adapters(AdapterWish(texts=given), search, RwkvPth())]
        for given in (texts, (f"{lora}:2", str(folder)))
    )
    assert [first.key, second.key] == [one.key for one in local], "the same bytes, wherever they are"
    assert (first.kind, first.rank, first.scale) == ("LoRA", 4, 2.0)
    assert (second.scale, len(second.source.files)) == (3.0, 2)
    assert first.source.revision and first.source.model_id == "alice/poems" and first.source.public
    assert not list((tmp_path / "cache").rglob("*.pth")), "a look fetches nothing"
    local_hub.put("alice/poems", "poems.pth", b"another one since")
    local_hub.fault("GET /__cdn/", cut=20_000, times=3)
    paths = [Path(one.path) for pinned in (first, second) for one in fetch_adapter(pinned, tmp_path / "cache", search)]
    assert {path.name: sha256(path) for path in paths} == {
        path.name: sha256(path) for path in (lora, *folder.iterdir())
    }
    local_hub.clear()
    paths[0].write_bytes(b"damaged meanwhile")
    fetch_adapter(first, tmp_path / "cache", search)
    assert sha256(paths[0]) == sha256(lora)
    local_hub.clear()
    fetch_adapter(second, tmp_path / "cache", search)
    assert not local_hub.log("/__cdn/"), "what is here is not fetched again"
    drop_fetched([first, second], tmp_path / "cache")
    assert not any(path.exists() for path in paths)


def test_which_adapter_of_a_repo(local_hub: LocalHub, tmp_path: Path, lora: Path) -> None:
    search = AdapterSearch(settings(tmp_path))

    def pin(text: str) -> PinnedAdapter:
        return pin_adapters(AdapterWish(texts=(text,), alpha=8), search, RwkvPth())[0][0]

    local_hub.put("alice/one", "a/poems.pth", lora.read_bytes())
    local_hub.put("alice/one", "README.md", b"# poems")
    assert pin("alice/one").source.path == "a/poems.pth"
    local_hub.put("alice/one", "b.pth", lora.read_bytes())
    with pytest.raises(SourceError, match=r"holds 2 .pth files, choose one, for example alice/one:a/poems.pth"):
        pin("alice/one")
    assert pin(f"{local_hub.endpoint}/alice/one/blob/main/b.pth").source.path == "b.pth"
    with pytest.raises(SourceError, match="README.md in alice/one is no .pth file"):
        pin("alice/one:README.md")
    with pytest.raises(SourceError, match="there is no repo|does not exist|not found|is private"):
        pin("alice/nothing-there:x.pth")


def test_a_pissa_of_the_hub_finds_what_it_began_with(local_hub: LocalHub, tmp_path: Path, lora: Path) -> None:
    begun = adapters.lora(STATE, seed=7)
    init = {f"model.{name.replace('.lora_', '.init_lora_')}": tensor for name, tensor in begun.items()}
    local_hub.put("alice/pissa", "run/rwkv-3.pth", lora.read_bytes())
    local_hub.put("alice/pissa", "run/init_pissa.pth", tiny.save(tmp_path / "i.pth", init).read_bytes())
    found = pin_adapters(AdapterWish(texts=("alice/pissa",)), AdapterSearch(settings(tmp_path)), RwkvPth())[0][0]
    assert found.init is not None
    assert (found.kind, found.source.path, found.init.path) == ("PiSSA", "run/rwkv-3.pth", "run/init_pissa.pth")
    assert found.init.revision == found.source.revision


def test_a_private_adapter_makes_a_private_job(
    local_hub: LocalHub, tmp_path: Path, model: tuple[Path, Path], lora: Path
) -> None:
    local_hub.put("alice/base", "model.pth", model[0].read_bytes())
    local_hub.put("alice/secret", "poems.pth", lora.read_bytes(), private=1)
    local_hub.put("alice/open", "poems.pth", lora.read_bytes())
    signed = dataclasses.replace(settings(tmp_path), hf_token=ALICE)
    open_job = make_job(wish(model, "alice/open:2", source="alice/base", outtype="f32"), signed)
    secret = make_job(wish(model, "alice/secret:2", source="alice/base", outtype="f32"), signed)
    assert is_public(open_job.request) and not is_public(secret.request)
    with open_checkpoint(demo.CHECKPOINT) as file:
        shapes = {name: torch.empty(shape) for name, shape in file.shapes.items()}
    for repo in ("alice/secret", "alice/open"):
        path = tiny.save(tmp_path / "verses.pth", adapters.lora(shapes))
        local_hub.put(repo, "verses.pth", path.read_bytes())
    with pytest.raises(SourceError, match="private"):
        make_job(wish(model, "alice/secret:verses.pth:2", source="demo", by_stranger=True), signed)
    theirs = make_job(wish(model, "alice/open:verses.pth:2", source="demo", vocab=None, by_stranger=True), signed)
    assert theirs.request.name == "RWKV-x070-Demo-7M-alice-verses" and is_public(theirs.request)
    (tmp_path / "alice").mkdir()
    with pytest.raises(SourceError, match=r"there is no adapter|no name on the Hub"):
        make_job(wish(model, f"{path}:2", source="demo", vocab=None, by_stranger=True), signed)


# ---- requests and records


def test_what_a_request_holds(tmp_path: Path, model: tuple[Path, Path], lora: Path, folder: Path) -> None:
    where = settings(tmp_path)
    plain = make_job(wish(model), where)
    one = make_job(wish(model, str(lora), lora_alpha=8), where)
    assert plain.request.name == "rwkv-7" and one.request.name == "rwkv-7-poems"
    assert make_job(wish(model, f"{lora}:2"), where).id == one.id, "alpha 8 of rank 4 is a scale of 2"
    assert one.request.adapters[0].source.sha256 == sha256(lora)
    others = [
        make_job(wish(model, f"{lora}:3", name="rwkv-7-poems"), where),
        make_job(wish(model, f"{lora}:2", str(folder), name="rwkv-7-poems"), where),
        make_job(wish(model, str(folder), f"{lora}:2", name="rwkv-7-poems"), where),
        make_job(wish(model, name="rwkv-7-poems"), where),
    ]
    assert len({job.request.inputs() for job in (one, *others)}) == 5
    assert others[1].request.local_paths[-3:][0].name == "poems.pth"
    assert from_json(to_json(others[2])) == others[2]
    assert "adapters" not in to_json(plain), "older versions read it"


def test_ids_are_what_they_were() -> None:
    """Of records that are older than adapters."""
    assert REQUEST.job_id == "m-b2e1fc09"


@pytest.mark.parametrize("where", ["source", "init"])
@pytest.mark.parametrize(
    "bad",
    [{"path": ".."}, {"path": "a/.."}, {"path": "a/b\nc"}, {"path": "a\\b"}, {"sha256": "../../x"}, {"path": ""}],
)
def test_no_adapter_of_a_record_leads_out_of_the_cache(where: str, bad: dict[str, str]) -> None:
    source = Source(kind="adapter", path="a/x.pth", size=1, sha256="ab" * 32, model_id="a/b")
    good = PinnedAdapter(source=source, init=source, kind="PiSSA")
    wrong = dataclasses.replace(good, **{where: dataclasses.replace(source, **bad)})
    for one, fails in ((good, False), (wrong, True)):
        text = to_json(Job(request=dataclasses.replace(REQUEST, adapters=(one,))))
        with pytest.raises(ValueError, match="not a job record") if fails else contextlib.nullcontext():
            from_json(text)


def test_what_cannot_work_is_refused_before_there_is_a_job(
    tmp_path: Path, model: tuple[Path, Path], lora: Path
) -> None:
    other = tiny.save(tmp_path / "wide.pth", adapters.lora(tiny.weights("7", width=128)))
    where = settings(tmp_path)
    with pytest.raises(SourceError, match=r"wide does not fit this model: its .* lora_B is|does not fit this model"):
        make_job(wish(model, f"{other}:1"), where)
    with pytest.raises(UsageError, match="poems is a LoRA of rank 4 that does not say its alpha"):
        make_job(wish(model, str(lora)), where)
    convert(model[0], tmp_path / "m.gguf", vocab=model[1])
    with pytest.raises(UsageError, match="a GGUF is taken as it is: give the checkpoint"):
        make_job(wish(model, f"{lora}:2", source=str(tmp_path / "m.gguf"), vocab=None), where)


def test_an_adapter_that_changed_since(tmp_path: Path, lora: Path) -> None:
    mine = tmp_path / "mine.pth"
    mine.write_bytes(lora.read_bytes())
    search = AdapterSearch(settings(tmp_path))
    pinned = pin_adapters(AdapterWish(texts=(f"{mine}:2",)), search, RwkvPth())[0][0]
    tiny.save(mine, adapters.lora(STATE, seed=1))
    with pytest.raises(SourceError, match=r"mine.pth changed since the job was made: put the file back"):
        fetch_adapter(pinned, tmp_path, search)
    mine.unlink()
    with pytest.raises(SourceError, match=r"mine.pth changed since"):
        fetch_adapter(pinned, tmp_path, search)


def test_the_card_names_them() -> None:
    remote = Source(
        kind="adapter", path="chat/a.pth", size=1, sha256="cd" * 32, model_id="bob/poems", revision="e" * 40
    )
    local = Source(kind="adapter", path="/home/alice/secret/b.pth", size=1, sha256="ef" * 32)
    base = dataclasses.replace(REQUEST.source, path="m.pth", model_id="BlinkDL/rwkv7-g1")
    both = (
        PinnedAdapter(source=remote, kind="LoRA", rank=8, scale=4),
        PinnedAdapter(source=local, kind="Bone", rank=64),
    )
    request = dataclasses.replace(REQUEST, source=base, adapters=both)
    text = card(Job(request=request), CardFacts(uploaded={}))
    assert "base_model:\n- BlinkDL/rwkv7-g1\n- bob/poems\nbase_model_relation: quantized\n" in text
    assert "- adapter from [bob/poems](https://huggingface.co/bob/poems) (`a.pth`, sha256 `cdcd" in text
    assert f"revision `{'e' * 40}`): LoRA, rank 8, alpha / r = 4\n- adapter from a local file (`b.pth`" in text
    assert "Bone, rank 64\n" in text and "secret" not in text
    assert "adapter" not in card(Job(request=REQUEST), CardFacts(uploaded={}))


# ---- the whole program


@pytest.mark.tools
def test_a_job_with_an_adapter_of_the_hub(
    ggufy: Ggufy, local_hub: LocalHub, tmp_path: Path, model: tuple[Path, Path], lora: Path
) -> None:
    local_hub.put("alice/base", "model.pth", model[0].read_bytes())
    local_hub.put("alice/verses", "poems.pth", lora.read_bytes())
    environment = {"HF_ENDPOINT": local_hub.endpoint, "GGUFY_CACHE": str(tmp_path / "cache")}
    more = ("--vocab", model[1], "--outtype", "f32", "--lora")
    made = ggufy("convert", model[0], tmp_path / "x.gguf", "--name", "m", *more, f"{lora}:2", **environment)
    assert made.code == 0, made.err
    job = ("quantize", "alice/base", "--types", "Q8_0", "--imatrix", "none", "--out", tmp_path / "o", *more)
    done = ggufy(*job, "alice/verses:2", "--name", "m", **environment)
    assert done.code == 0, done.err
    assert (tmp_path / "o" / "m-GGUF" / "m-F32.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()
    assert not list((tmp_path / "cache").rglob("*.pth")), "neither the model nor the adapter stays"
    refused = ggufy(*job, "alice/verses", "--lora-alpha", "0", **environment)
    assert (refused.code, refused.err) == (2, "ggufy: --lora-alpha takes a number above 0, such as 32: check it.\n")
