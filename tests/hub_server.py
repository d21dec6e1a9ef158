"""A Hub for the tests: `python tests/hub_server.py --port N`. It holds everything in memory and speaks what the real
client (huggingface_hub 2.4) needs for repos, commits, LFS and Xet uploads, listings and downloads.

Users: the token `hf_alice` is alice's (also of the organization acme), `hf_bob` bob's; `hf_alice_read` may only read.
Large files are served from `localhost` while the API is at 127.0.0.1: another host, so the client drops the token.
Xet works offline because hf_xet takes `local://<folder>` as storage address (hub_storage.py).

    POST /__put?repo=a/b&path=f[&type=dataset][&private=1][&gated=auto][&lfs=0][&oid=…][&downloads=7]
                 body: the file; makes the repo if need be; `oid` claims another digest than the file's
    POST /__fault {match, status, times, headers, skip, after, cut, delay, late, no_range, says, damage}
    DELETE /__fault  no more faults
    GET  /__log  the requests so far; DELETE empties it
    POST /__outage  away as a whole for a while: hub_outage.py

A fault concerns requests whose "METHOD /path" the regular expression `match` finds: `skip` of them pass, then `times`
(1) of them get `status` instead of being handled, or after being handled if `after` is true (a lost answer), or are
answered with only `cut` bytes before the connection drops; `delay` seconds pass before either. A request that is
`late` is taken in at once and carried out so many seconds later, even if its sender has gone. `no_range` sends the
whole file to one who asked for a part; `says` puts other headers into an answer, and `damage` turns a bit of the byte
with this index in its body.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import uvicorn
import yaml
from hub_faults import Outside
from hub_jobs import Jobs
from hub_outage import Outage
from hub_storage import Commit, File, Refusal, Repo, Storage, git_digest
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

USERS = {"hf_alice": ("alice", "write"), "hf_alice_read": ("alice", "read"), "hf_bob": ("bob", "write")}
ORGANIZATIONS = {"alice": ("acme",), "bob": ()}
LFS_BYTES = 1 << 20  # files from this size on, and those below by their name, are large files
LFS_NAMES = (".gguf", ".pth", ".bin", ".safetensors")
PREFIX = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
FAR = 4_000_000_000  # when access tokens expire, seconds since 1970


class Hub:
    """The state, and one method per route."""

    def __init__(self, base: str, root: Path, part_size: int):
        self.base, self.cdn = base, base.replace("127.0.0.1", "localhost")
        self.storage = Storage(root)
        self.jobs = Jobs(base, root / "jobs")
        self.part_size = part_size  # 0: large files arrive in one request
        self.repos: dict[tuple[str, str], Repo] = {}
        self.parts: dict[str, dict[int, bytes]] = {}

    # ---- who may do what

    def user(self, request: Request) -> tuple[str, str]:
        """Name and role; two empty strings for a stranger."""
        header = request.headers.get("Authorization")
        if header is None:
            return "", ""
        if (token := header.removeprefix("Bearer ")) not in USERS:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return USERS[token]

    def owns(self, name: str, namespace: str) -> bool:
        return bool(name) and namespace in (name, *ORGANIZATIONS[name])

    def repo(self, request: Request, *, write: bool = False, content: bool = False) -> Repo:
        """The repo in the path, if the user may see it, write to it, or read what is in it."""
        kind = request.path_params.get("kind", "models").rstrip("/")
        repo_id = "{owner}/{name}".format(**request.path_params)
        name, role = self.user(request)
        repo = self.repos.get((kind, repo_id))
        mine = self.owns(name, repo_id.split("/")[0])
        if repo is None or (repo.private and not mine):
            raise Refusal(404 if name else 401, "RepoNotFound", "Repository not found")
        if write and not (mine and role == "write"):
            raise Refusal(403 if name else 401, "", "You don't have the rights to write to this repo")
        if content and repo.gated and not mine:
            raise Refusal(403 if name else 401, "GatedRepo", f"Access to {kind[:-1]} {repo_id} is restricted")
        return repo

    def mine(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """For who may write in the namespace of the path."""

        async def checked(request: Request) -> Response:
            name, role = self.user(request)
            if not self.owns(name, request.path_params["owner"]) or role != "write":
                raise Refusal(403 if name else 401, "", "You don't have the rights to run Jobs here")
            return await endpoint(request)

        return checked

    async def whoami(self, request: Request) -> Response:
        name, role = self.user(request)
        if not name:
            raise Refusal(401, "", "Invalid username or password.")
        body = {"type": "user", "id": name, "name": name, "fullname": name.title(), "avatarUrl": "/avatar.svg"}
        organizations = [{"type": "org", "name": org, "fullname": org} for org in ORGANIZATIONS[name]]
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return JSONResponse(body | {"orgs": organizations, "auth": token})

    # ---- repos

    async def create(self, request: Request) -> Response:
        asked = await request.json()
        name, role = self.user(request)
        owner = asked.get("organization") or name
        if not self.owns(name, owner) or role != "write":
            raise Refusal(403 if name else 401, "", f'You don\'t have the rights to create under "{owner}"')
        kind, repo_id = asked.get("type", "model") + "s", f"{owner}/{asked['name']}"
        url = f"{self.base}/{PREFIX[kind]}{repo_id}"
        if (kind, repo_id) in self.repos:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.new_repo(kind, repo_id, private=bool(private))
        return JSONResponse({"url": url, "name": repo_id})

    def new_repo(self, kind: str, repo_id: str, *, private: bool) -> Repo:
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private)
        repo.add("initial commit", {})
        return repo

    async def delete(self, request: Request) -> Response:
        asked = await request.json()
        owner = asked.get("organization") or self.user(request)[0]
        request.path_params.update(kind=(asked.get("type") or "model") + "s", owner=owner, name=asked["name"])
        repo = self.repo(request, write=True)
        del self.repos[repo.kind, repo.id]
        return JSONResponse({})

    async def search(self, request: Request) -> Response:
        name, _ = self.user(request)
        kind, query = request.path_params["kind"], request.query_params
        shown = [
            self.info(repo, repo.commits[-1], blobs=False)
            for (repo_kind, repo_id), repo in self.repos.items()
            if repo_kind == kind and query.get("search", "").lower() in repo_id.lower()
            if repo_id.startswith(query.get("author", ""))
            and (not repo.private or self.owns(name, repo_id.split("/")[0]))
        ]
        shown = [info for info in shown if set(query.getlist("filter")) <= set(info["tags"])]
        if query.get("sort") == "downloads":
            shown.sort(key=lambda info: -int(info["downloads"]))
        return JSONResponse(shown[: int(query.get("limit", 1000))])

    async def repo_info(self, request: Request) -> Response:
        repo = self.repo(request)
        blobs = request.query_params.get("blobs", "").lower() == "true"
        return JSONResponse(self.info(repo, repo.at(request.path_params.get("rev", "main")), blobs=blobs))

    def info(self, repo: Repo, commit: Commit, *, blobs: bool) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        for sibling in siblings if blobs else ():
            file = commit.files[sibling["rfilename"]]
            sibling |= {"size": file.size, "blobId": file.blob_id}
            if file.lfs:
                sibling["lfs"] = {"sha256": file.oid, "size": file.size, "pointerSize": 134}
        readme = commit.files.get("README.md")
        text = self.storage.blobs[readme.oid] if readme else b""
        body: dict[str, Any] = {"cardData": yaml.safe_load(text.split(b"---")[1])} if text.startswith(b"---") else {}
        tags = (body.get("cardData") or {}).get("tags") or []
        body |= {"id": repo.id, "author": repo.id.split("/")[0], "sha": commit.id, "private": repo.private}
        return body | {
            "gated": repo.gated,
            "siblings": siblings,
            "lastModified": commit.date,
            "tags": tags,
            "downloads": repo.downloads,
        }

    async def auth_check(self, request: Request) -> Response:
        self.repo(request, content=True)
        return JSONResponse({})

    async def commits(self, request: Request) -> Response:
        repo = self.repo(request)
        until = repo.commits[: repo.commits.index(repo.at(request.path_params["rev"])) + 1]
        author = [{"user": repo.id.split("/")[0]}]
        return JSONResponse(
            [{"id": c.id, "title": c.title, "message": "", "date": c.date, "authors": author} for c in until[::-1]]
        )

    async def squash(self, request: Request) -> Response:
        repo = self.repo(request, write=True)
        files = repo.commits[-1].files
        repo.commits.clear()
        repo.add((await request.json())["message"], files)
        return JSONResponse({})

    async def tree(self, request: Request) -> Response:
        repo, query = self.repo(request), request.query_params
        files = repo.at(request.path_params["rev"]).files
        folder = request.path_params.get("path", "")
        start = f"{folder}/" if folder else ""
        paths = {path for path in files if path.startswith(start)}
        if folder and not paths:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist")
        entries = {
            *paths,
            *(str(above) for path in paths for above in Path(path).parents if len(str(above)) > len(folder)),
        }
        if query.get("recursive", "").lower() != "true":
            entries = {path for path in entries if "/" not in path.removeprefix(start)}
        listed, limit, at = sorted(entries - {".", folder}), int(query.get("limit", 1000)), int(query.get("cursor", 0))
        page = [self.entry(path, files.get(path)) for path in listed[at : at + limit]]
        headers = {}
        if at + limit < len(listed):
            following = request.url.include_query_params(cursor=at + limit)
            headers["Link"] = f'<{self.base}{following.path}?{following.query}>; rel="next"'
        return JSONResponse(page, headers=headers)

    def entry(self, path: str, file: File | None) -> dict[str, Any]:
        if file is None:
            return {"type": "directory", "path": path, "oid": git_digest(path.encode()), "size": 0}
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": file.blob_id, "size": file.size}
        if file.lfs:
            entry["lfs"] = {"oid": file.oid, "size": file.size, "pointerSize": 134}
            if xet_hash := self.storage.xet_hash(file.oid):
                entry["xetHash"] = xet_hash
        return entry

    async def paths_info(self, request: Request) -> Response:
        repo = self.repo(request)
        files = repo.at(request.path_params["rev"]).files
        asked = parse_qs((await request.body()).decode())["paths"]
        return JSONResponse([self.entry(path, files[path]) for path in asked if path in files])

    # ---- uploads

    async def preupload(self, request: Request) -> Response:
        repo = self.repo(request, write=True)
        files = repo.at(request.path_params["rev"]).files
        answers = []
        for asked in (await request.json())["files"]:
            path, known = asked["path"], files.get(asked["path"])
            mode = "lfs" if asked["size"] >= LFS_BYTES or path.endswith(LFS_NAMES) else "regular"
            oid = known.oid if known else None
            ignored = ".gitignore" in files and path.endswith(".gguf")  # as if it named them
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": ignored, "oid": oid})
        return JSONResponse({"files": answers})

    async def xet_token(self, request: Request) -> Response:
        self.repo(request, write=request.path_params["access"] == "write")
        url = self.storage.cas_url()
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(FAR)}
        return JSONResponse({"accessToken": "xet", "exp": FAR, "casUrl": url}, headers=headers)

    async def lfs_batch(self, request: Request) -> Response:
        self.repo(request, write=True)
        answers = []
        for asked in (await request.json())["objects"]:
            oid, size = asked["oid"], asked["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if not self.storage.has(oid):
                upload: dict[str, Any] = {"href": f"{self.cdn}/__lfs/{oid}"}
                if self.part_size and size > self.part_size:
                    parts = range(1, -(-size // self.part_size) + 1)
                    upload["header"] = {str(n): f"{self.cdn}/__lfs/{oid}/{n}" for n in parts}
                    upload["header"]["chunk_size"] = str(self.part_size)
                    upload["href"] = f"{self.base}/__lfs/{oid}/complete"
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.base}/__lfs/{oid}/verify"}}
            answers.append(answer)
        return JSONResponse({"transfer": "basic", "objects": answers})

    async def lfs_put(self, request: Request) -> Response:
        oid, data = request.path_params["oid"], await request.body()
        if number := request.path_params.get("number"):
            self.parts.setdefault(oid, {})[int(number)] = data
            return Response(headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})
        return self.store(oid, data)

    async def lfs_complete(self, request: Request) -> Response:
        oid, asked = request.path_params["oid"], await request.json()
        parts = self.parts.pop(oid)
        return self.store(oid, b"".join(parts[part["partNumber"]] for part in asked["parts"]))

    def store(self, oid: str, data: bytes) -> Response:
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, "", "the content has another sha256")
        self.storage.blobs[oid] = data
        return JSONResponse({})

    async def lfs_verify(self, request: Request) -> Response:
        known = self.storage.blobs.get(request.path_params["oid"])
        if known is None or len(known) != (await request.json())["size"]:
            raise Refusal(404, "", "the object is not there")
        return JSONResponse({})

    async def commit(self, request: Request) -> Response:
        repo = self.repo(request, write=True)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        head = repo.at(request.path_params["rev"])
        if header.get("parentCommit", head.id) != head.id:
            raise Refusal(412, "", "The branch was updated since you opened this page, please try again.")
        files = dict(head.files)
        for line in lines:
            self.apply(line["key"], line["value"], files)
        new = repo.add(header["summary"], files)
        url = f"{self.base}/{PREFIX[repo.kind]}{repo.id}/commit/{new.id}"
        return JSONResponse({"success": True, "commitOid": new.id, "commitUrl": url, "hookOutput": ""})

    def apply(self, key: str, value: dict[str, Any], files: dict[str, File]) -> None:
        path = value.get("path", "")
        if key == "file":
            data = base64.b64decode(value["content"])
            files[path] = File(git_digest(data), len(data), lfs=False)
            self.storage.blobs[files[path].oid] = data
        elif key == "lfsFile":
            if not self.storage.has(value["oid"]):
                raise Refusal(400, "", f"LFS pointer points to a file that does not exist: {path}")
            files[path] = File(value["oid"], len(self.storage.get(value["oid"])), lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if name == path or name.startswith(path.rstrip("/") + "/")]
            if not gone:
                raise Refusal(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
            for name in gone:
                del files[name]

    async def validate_yaml(self, request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    # ---- downloads

    async def resolve(self, request: Request) -> Response:
        repo, path = self.repo(request, content=True), request.path_params["path"]
        commit = repo.at(request.path_params["rev"])
        if (file := commit.files.get(path)) is None:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist")
        headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
        if not file.lfs:
            kind = "text/html" if path.endswith(".html") else "text/plain"
            return self.content(request, self.storage.get(file.oid), headers | {"ETag": f'"{file.oid}"'}, kind)
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.oid}"'}
        headers["Location"] = f"{self.cdn}/__cdn/{file.oid}/{quote(path)}"
        if xet_hash := self.storage.xet_hash(file.oid):
            route = f"{self.base}/api/{repo.kind}/{repo.id}/xet-read-token/{commit.id}"
            headers |= {"X-Xet-Hash": xet_hash, "X-Xet-Refresh-Route": route}
        return Response(status_code=302, headers=headers)

    async def serve_large(self, request: Request) -> Response:
        if "Authorization" in request.headers:
            raise Refusal(400, "", "the token was sent to another host")
        data = self.storage.get(request.path_params["oid"])
        return self.content(request, data, {"ETag": f'"{request.path_params["oid"]}"'}, "application/octet-stream")

    def content(self, request: Request, data: bytes, headers: dict[str, str], kind: str) -> Response:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if match is None:
            return Response(data, headers=headers, media_type=kind)
        first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
        if first > last:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{len(data)}"})
        headers = headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return Response(data[first : last + 1], 206, headers, kind)

    # ---- for the tests

    async def put(self, request: Request) -> Response:
        query, data = request.query_params, await request.body()
        kind, repo_id = query.get("type", "model") + "s", query["repo"]
        repo = self.repos.get((kind, repo_id)) or self.new_repo(kind, repo_id, private="private" in query)
        repo.gated = query.get("gated", repo.gated)
        repo.downloads = int(query.get("downloads", repo.downloads))
        lfs = query.get("lfs", "1") == "1"
        file = File(hashlib.sha256(data).hexdigest() if lfs else git_digest(data), len(data), lfs)
        self.storage.blobs[query.get("oid", file.oid)] = data  # an oid of the caller's: content that does not fit
        file = File(query.get("oid", file.oid), len(data), lfs)
        commit = repo.add(f"add {query['path']}", repo.commits[-1].files | {query["path"]: file})
        return JSONResponse({"sha": commit.id, "oid": file.oid})

    def routes(self) -> list[Route]:
        api, repo = "/api/{kind:kind}", "/api/{kind:kind}/{owner}/{name}"
        large, file = "/__lfs/{oid}", "/{owner}/{name}/resolve/{rev}/{path:path}"
        batch = "/{owner}/{name}.git/info/lfs/objects/batch"
        table = [
            ("GET", "/api/whoami-v2", self.whoami),
            ("POST", "/api/repos/create", self.create),
            ("DELETE", "/api/repos/delete", self.delete),
            ("POST", "/api/validate-yaml", self.validate_yaml),
            ("GET", api, self.search),
            ("GET", repo, self.repo_info),
            ("GET", repo + "/revision/{rev}", self.repo_info),
            ("GET", repo + "/auth-check", self.auth_check),
            ("POST", repo + "/preupload/{rev}", self.preupload),
            ("GET", repo + "/xet-{access}-token/{rev}", self.xet_token),
            ("POST", repo + "/commit/{rev}", self.commit),
            ("GET", repo + "/tree/{rev}", self.tree),
            ("GET", repo + "/tree/{rev}/{path:path}", self.tree),
            ("POST", repo + "/paths-info/{rev}", self.paths_info),
            ("GET", repo + "/commits/{rev}", self.commits),
            ("POST", repo + "/super-squash/{rev}", self.squash),
            ("PUT", large, self.lfs_put),
            ("PUT", large + "/{number:int}", self.lfs_put),
            ("POST", large + "/complete", self.lfs_complete),
            ("POST", large + "/verify", self.lfs_verify),
            ("GET", "/__cdn/{oid}/{path:path}", self.serve_large),
            ("POST", "/__put", self.put),
            ("GET", "/__jobs", self.jobs.tell),
            ("GET", "/api/jobs/hardware", self.jobs.hardware),
            ("POST", "/api/jobs/{owner}", self.mine(self.jobs.run)),
            ("GET", "/api/jobs/{owner}", self.mine(self.jobs.list)),
            ("GET", "/api/jobs/{owner}/{id}", self.mine(self.jobs.inspect)),
            ("GET", "/api/jobs/{owner}/{id}/logs", self.mine(self.jobs.logs)),
            ("POST", "/api/jobs/{owner}/{id}/cancel", self.mine(self.jobs.cancel)),
            ("POST", batch, self.lfs_batch),
            ("POST", "/{kind:kind}" + batch, self.lfs_batch),
            ("GET", "/{kind:kind}" + file, self.resolve),
            ("GET", file, self.resolve),
        ]
        return [Route(path, endpoint, methods=[method]) for method, path, endpoint in table]


class Kind(Convertor[str]):
    regex = "models|datasets|spaces"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def main() -> None:
    parser = argparse.ArgumentParser(description="A Hub for the tests.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--part-size", type=int, default=0, help="LFS uploads above so many bytes come in parts")
    parser.add_argument("--watch-stdin", action="store_true", help="end when standard input is closed")
    options = parser.parse_args()
    register_url_convertor("kind", Kind())
    root = Path(tempfile.mkdtemp(prefix="ggufy-hub-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when it is done
    if options.watch_stdin:
        threading.Thread(
            target=lambda: (sys.stdin.read(), shutil.rmtree(root, ignore_errors=True), os._exit(0)), daemon=True
        ).start()
    try:
        hub = Hub(f"http://127.0.0.1:{options.port}", root, options.part_size)
        app = Starlette(routes=hub.routes(), exception_handlers={Refusal: refused})
        outage = Outage(Outside(app))
        config = uvicorn.Config(
            outage, host="127.0.0.1", port=options.port, log_level="critical", timeout_graceful_shutdown=1
        )
        outage.server = uvicorn.Server(config)
        outage.server.run()
    finally:
        shutil.rmtree(root, ignore_errors=True)


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response


if __name__ == "__main__":
    main()
