"""Files that a visitor has ticked, of any models: which they are, and what can be downloaded of their comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ggufy.core.comparison import ComparedFile, Group, grouped, to_csv
from ggufy.core.errors import UsageError
from ggufy.jobs.compared import of_model, picture
from ggufy.jobs.results import models as model_rows
from ggufy.service.service import Services
from ggufy.ui.file_rows import file_link, repo_address, tick_of
from ggufy.ui.models import Model, by_model
from ggufy.ui.visitors import visitor_of_route

MOST = 60  # files at a time
MOST_FOUND = 40  # that a search lists
_ROUTE = "comparison"


@dataclass(frozen=True, kw_only=True)
class Ticked:
    """A file that is compared."""

    tick: str
    file: ComparedFile
    link: str  # where it can be downloaded


def ticked_files(services: Services, models: Iterable[Model], ticks: Sequence[str]) -> list[Ticked]:
    """Of the models that a visitor sees, the files with these ticks, at most MOST; what else was sent is nothing."""
    wanted = set(ticks[:MOST])
    found = []
    for model in models:
        names = {row["file"] for row in model_rows(model.rows) if tick_of(model.folder, row["file"]) in wanted}
        if not names:
            continue
        seen = services.detailed(model.whole, log=False)
        for file in of_model(seen.files, [view.job for view in model.views], model.folder):
            if file.file in names:
                job = model.owners[file.file].job
                link = file_link(job.id, file.file, repo=repo_address(job))
                found.append(Ticked(tick=tick_of(model.folder, file.file), file=file, link=link))
    return found


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has found."""

    first: list[tuple[str, str, int]]  # tick, file name and bytes of the first MOST_FOUND
    count: int  # of all


def search(models: Iterable[Model], words: str) -> Found | None:
    """Files in whose names all the words are; None for no words."""
    if not (parts := words.casefold().split()):
        return None
    found = [
        (tick_of(model.folder, row["file"]), row["file"], row["size"])
        for model in models
        for row in model_rows(model.rows)
        if all(part in row["file"].casefold() for part in parts)
    ]
    return Found(first=found[:MOST_FOUND], count=len(found))


def address(kind: str, ticked: Iterable[Ticked]) -> str:
    """Of the comparison as a file: `csv` or `png`."""
    return f"{_ROUTE}.{kind}?{urlencode([('file', one.tick) for one in ticked])}"


def routes(services: Services) -> list[Route]:
    """GET /comparison.csv and .png, with a `file=<tick>` for each of the files: as what a visitor may see of them."""

    def asked(request: Request) -> list[Group]:
        models = by_model(services.views(visitor_of_route(services, request)))
        ticked = ticked_files(services, models, request.query_params.getlist("file"))
        return grouped(one.file for one in ticked)

    def table(request: Request) -> Response:
        return _download(to_csv(asked(request)).encode(), "csv", "text/csv; charset=utf-8")

    def plot(request: Request) -> Response:
        try:
            return _download(picture(asked(request)), "png", "image/png")
        except UsageError as error:
            return PlainTextResponse(f"{error}\n", status_code=404)

    return [Route(f"/{_ROUTE}.csv", table, methods=["GET"]), Route(f"/{_ROUTE}.png", plot, methods=["GET"])]


def _download(content: bytes, kind: str, media_type: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{_ROUTE}.{kind}"'}
    return Response(content, media_type=media_type, headers=headers)
