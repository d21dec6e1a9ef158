"""A ModelScope for the tests: `python tests/modelscope_server.py --port N --cdn-port M`. All is held in memory.

It is as unhelpful as the real one: answers are JSON in an envelope, a missing file is a sentence with HTTP status 200,
an unknown revision a list of null, a list of files is cut without a word, and names its commit by eight digits only.
Large files are redirected to the other port by a signed address; there, whoever shows a token or a cookie is refused.
Small files come whole, whatever part is asked for. There is no compare-and-swap. A new repo has a README.md.

Users: the token `ms-alice` is alice's, `ms-bob` bob's; `ms-alice-read` may only read.

    POST /__put?repo=a/b&path=f[&lfs=0][&private=1][&gated=1][&oid=…]   body: the file; makes the repo if need be
    POST /__fill?repo=a/b&folder=f&count=n   many small files
    POST /__expire        signed addresses given so far are refused from now on
    POST /__storage?oss=1 uploads go to the other port, by signed addresses too
    /__fault, /__log      as of hub_server.py; a fault's `body` is what its answer holds
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import os
import re
import sys
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import uvicorn
from hub_faults import Outside
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

USERS = {"ms-alice": ("alice", "write"), "ms-alice-read": ("alice", "read"), "ms-bob": ("bob", "write")}
PUBLIC, PRIVATE = 5, 1
MOST_LISTED, MOST_ACTIONS = 3000, 2000
DEFAULT_README = "---\nlicense: Apache License 2.0\n---\n### 当前模型的贡献者未提供更加详细的模型介绍。\n"


@dataclass(frozen=True)
class File:
    sha256: str
    size: int
    lfs: bool
    commit: str  # that changed it last


@dataclass
class Repo:
    id: str
    visibility: int
    gated: bool = False
    license: str = ""
    commits: list[tuple[str, dict[str, File]]] = field(default_factory=list)

    def add(self, files: dict[str, tuple[str, int, bool]], gone: set[str] | None = None) -> str:
        seed = f"{self.id} {len(self.commits)} {sorted(files)} {os.urandom(8).hex()}"
        commit = hashlib.sha1(seed.encode()).hexdigest()
        before = self.commits[-1][1] if self.commits else {}
        kept = {path: file for path, file in before.items() if path not in (gone or set())}
        self.commits.append((commit, kept | {path: File(*file, commit) for path, file in files.items()}))
        return commit

    def at(self, revision: str) -> tuple[str, dict[str, File]] | None:
        if revision == "master":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class Refusal(Exception):
    def __init__(self, status: int, code: int, message: str):
        self.response = envelope(None, status, code, message)


def envelope(data: Any, status: int = 200, code: int = 200, message: str = "success") -> JSONResponse:
    body = {"Code": code, "Data": data, "Message": message, "RequestId": "1-2-3", "Success": code == 200}
    return JSONResponse(body, status)


class ModelScope:
    """The state, and one method per route."""

    def __init__(self, port: int, cdn_port: int):
        self.base, self.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{cdn_port}"
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.keys: set[str] = set()  # of signed addresses that are good
        self.oss = False

    # ---- who may do what

    def user(self, request: Request) -> tuple[str, str]:
        header, cookie = request.headers.get("Authorization"), request.cookies.get("m_session_id")
        if header is None and cookie is None:
            return "", ""
        token = (header or "").removeprefix("Bearer ")
        if token not in USERS or cookie != token:  # older parts want the one, newer parts the other
            raise Refusal(400, 10010103009, "AccessToken is invalid or expired")
        return USERS[token]

    def repo(self, request: Request, *, write: bool = False, content: bool = False) -> Repo:
        repo_id = "{owner}/{name}".format(**request.path_params)
        name, role = self.user(request)
        repo, mine = self.repos.get(repo_id), repo_id.split("/")[0] == name
        if repo is None or (repo.visibility == PRIVATE and not mine and not repo.gated):
            raise Refusal(404, 10010205001, "record not found")
        if (write and not (mine and role == "write")) or (content and repo.gated and not mine):
            raise Refusal(403, 10010105001, "access denied")
        return repo

    async def whoami(self, request: Request) -> Response:
        name, _ = self.user(request)
        if not name:
            return JSONResponse({"success": False, "code": "Unauthorized", "message": "login first"}, 401)
        return JSONResponse({"success": True, "data": {"preferred_username": name, "name": name}})

    # ---- reading

    async def info(self, request: Request) -> Response:
        repo = self.repo(request)
        told = {"Name": repo.id.split("/")[1], "Path": repo.id.split("/")[0], "License": repo.license}
        return envelope(told | {"Visibility": repo.visibility, "ProtectedMode": 1 if repo.gated else 2})

    async def files(self, request: Request) -> Response:
        repo, query = self.repo(request), request.query_params
        if (found := repo.at(query.get("Revision", "master"))) is None:
            return envelope({"Files": None, "IsVisual": 0, "LatestCommitter": None})
        commit, files = found
        root = query.get("Root", "")
        start = f"{root}/" if root else ""
        paths = [path for path in files if path.startswith(start)]
        folders = {path[:at] for path in paths for at in range(len(start), len(path)) if path[at] == "/"}
        shown = sorted({*paths, *folders})
        if query.get("Recursive") != "True":
            shown = [path for path in shown if "/" not in path.removeprefix(start)]
        entries = [self.entry(path, files.get(path)) for path in shown[:MOST_LISTED]]
        return envelope({"Files": entries, "IsVisual": 0, "LatestCommitter": {"Id": "", "ShortId": commit[:8]}})

    def entry(self, path: str, file: File | None) -> dict[str, Any]:
        told: dict[str, Any] = {"Path": path, "Name": path.rpartition("/")[2], "Size": 0, "Sha256": ""}
        if file is None:
            return told | {"Type": "tree", "Revision": "", "IsLFS": False}
        return told | {
            "Type": "blob", "Size": file.size, "Sha256": file.sha256, "IsLFS": file.lfs, "Revision": file.commit
        }  # fmt: skip

    async def read(self, request: Request) -> Response:
        """As programs ask (`repo?Revision=&FilePath=`), and as people do (`resolve/<revision>/<path>`)."""
        repo = self.repo(request, content=True)
        given = request.path_params
        found = repo.at(given.get("revision") or request.query_params.get("Revision", "master"))
        file = found[1].get(given.get("path") or request.query_params.get("FilePath", "")) if found else None
        if file is None:
            return envelope(None, 200, 10990101007, "the file does not exist, please check the revision and the path")
        if file.lfs:
            return RedirectResponse(self.signed(f"/__cdn/{file.sha256}"), 302, {"X-Linked-ETag": f'"{file.sha256}"'})
        data = self.blobs[file.sha256]
        if match := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "")):
            data = data[: len(data) - int(match[1])]  # its Content-Length is that of the part, and the file is not
        return Response(data, media_type="application/octet-stream")

    def signed(self, path: str) -> str:
        self.keys.add(key := os.urandom(8).hex())
        return f"{self.cdn}{quote(path)}?auth_key={key}"

    # ---- the other port

    def check_stranger(self, request: Request) -> Response | None:
        if "Authorization" in request.headers or "Cookie" in request.headers:
            return Response("InvalidArgument: only one auth mechanism is allowed", 400)
        return None if request.query_params.get("auth_key") in self.keys else Response("signature expired", 403)

    async def serve_large(self, request: Request) -> Response:
        if refused := self.check_stranger(request):
            return refused
        data = self.blobs[request.path_params["oid"]]
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if match is None:
            return Response(data, headers=headers, media_type="application/octet-stream")
        first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
        if first > last:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return Response(data[first : last + 1], 206, headers, "application/octet-stream")

    async def store_signed(self, request: Request) -> Response:
        return self.check_stranger(request) or await self.stored(request)

    # ---- writing

    async def create(self, request: Request) -> Response:
        asked, (name, role) = await request.json(), self.user(request)
        if asked["Path"] != name or role != "write":
            raise Refusal(403, 10010105001, "access denied")
        repo_id = f"{asked['Path']}/{asked['Name']}"
        if repo_id in self.repos:
            raise Refusal(400, 10010101001, "the model already exists")
        repo = self.repos[repo_id] = Repo(repo_id, asked["Visibility"], license=asked.get("License", ""))
        repo.add({"README.md": self.keep(DEFAULT_README.encode()), ".gitattributes": self.keep(b"*.bin lfs\n")})
        return envelope({"Id": len(self.repos), "Name": asked["Name"]})

    def keep(self, data: bytes) -> tuple[str, int, bool]:
        """A small file, of the repo itself."""
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest, len(data), False

    async def batch(self, request: Request) -> Response:
        self.repo(request, write=True)
        answers = []
        for asked in (await request.json())["objects"]:
            answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.blobs:
                path = f"/__lfs/{asked['oid']}"
                href = self.signed(path) if self.oss else f"{self.base}{path}"
                answer["actions"] = {"upload": {"href": href}}
            answers.append(answer)
        return envelope({"objects": answers})

    async def store(self, request: Request) -> Response:
        if self.user(request)[1] != "write":
            raise Refusal(403, 10010105001, "access denied")
        return await self.stored(request)

    async def stored(self, request: Request) -> Response:
        data, oid = await request.body(), request.path_params["oid"]
        if "Content-Length" not in request.headers or hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, 10010104001, "the content has another sha256 or no length")
        self.blobs[oid] = data
        return envelope({})

    async def commit(self, request: Request) -> Response:
        repo, asked = self.repo(request, write=True), await request.json()
        files, gone = {}, set()
        if len(asked["actions"]) > MOST_ACTIONS:
            raise Refusal(422, 10010104002, "too many actions")
        for action in asked["actions"]:
            path = action["path"]
            if action["action"] == "delete":
                gone.add(path)
            elif action["type"] == "lfs":
                if len(self.blobs.get(action["sha256"], b"")) != action["size"]:
                    raise Refusal(400, 10010104003, f"the object of {path} was not uploaded")
                files[path] = (action["sha256"], action["size"], True)
            else:
                files[path] = self.keep(base64.b64decode(action["content"], validate=True))
        return envelope({"CommitId": repo.add(files, gone)})

    # ---- for the tests

    async def put(self, request: Request) -> Response:
        query, data = request.query_params, await request.body()
        default = Repo(query["repo"], PRIVATE if "private" in query or "gated" in query else PUBLIC)
        repo = self.repos.setdefault(query["repo"], default)
        repo.gated, repo.license = "gated" in query, query.get("license", repo.license)
        digest = query.get("oid") or hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        commit = repo.add({query["path"]: (digest, len(data), query.get("lfs", "1") == "1")})
        return JSONResponse({"sha": commit, "oid": digest})

    async def fill(self, request: Request) -> Response:
        query = request.query_params
        one = self.keep(b"one of many")
        names = [f"{query['folder']}/{number:05}.txt" for number in range(int(query["count"]))]
        return JSONResponse({"sha": self.repos[query["repo"]].add(dict.fromkeys(names, one))})

    async def expire(self, request: Request) -> Response:
        self.keys.clear()
        return JSONResponse({})

    async def storage(self, request: Request) -> Response:
        self.oss = request.query_params["oss"] == "1"
        return JSONResponse({})

    def api(self) -> Starlette:
        repo, repos = "/api/v1/models/{owner}/{name}", "/api/v1/repos/models/{owner}/{name}"
        table = [
            ("GET", "/openapi/v1/users/me", self.whoami),
            ("POST", "/api/v1/models", self.create),
            ("GET", repo, self.info),
            ("GET", repo + "/repo/files", self.files),
            ("GET", repo + "/repo", self.read),
            ("GET", "/models/{owner}/{name}/resolve/{revision}/{path:path}", self.read),
            ("POST", repos + "/info/lfs/objects/batch", self.batch),
            ("POST", repos + "/commit/master", self.commit),
            ("PUT", "/__lfs/{oid}", self.store),
            ("POST", "/__put", self.put),
            ("POST", "/__fill", self.fill),
            ("POST", "/__expire", self.expire),
            ("POST", "/__storage", self.storage),
        ]
        return application(table)

    def other_host(self) -> Starlette:
        return application([("GET", "/__cdn/{oid}", self.serve_large), ("PUT", "/__lfs/{oid}", self.store_signed)])


def application(table: list[tuple[str, str, Any]]) -> Starlette:
    routes = [Route(path, endpoint, methods=[method]) for method, path, endpoint in table]
    return Starlette(routes=routes, exception_handlers={Refusal: refused})


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response


async def serve(port: int, cdn_port: int) -> None:
    """Both ports, with one log and one list of faults."""
    site = ModelScope(port, cdn_port)
    api, other = site.api(), site.other_host()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (other if (scope.get("server") or (0, 0))[1] == cdn_port else api)(scope, receive, send)

    outside = Outside(app)
    servers = [
        uvicorn.Server(uvicorn.Config(outside, host=host, port=one, log_level="critical", lifespan="off"))
        for host, one in (("127.0.0.1", port), ("localhost", cdn_port))
    ]
    await asyncio.gather(*(server.serve() for server in servers))


def main() -> None:
    parser = argparse.ArgumentParser(description="A ModelScope for the tests.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cdn-port", type=int, required=True)
    options = parser.parse_args()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()  # its test has ended
    asyncio.run(serve(options.port, options.cdn_port))


if __name__ == "__main__":
    main()
