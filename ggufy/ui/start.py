"""The page: settings → services → serve → resume. SIGTERM and Ctrl-C end it; what runs goes on at the next start."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from ggufy.core.errors import GgufyError
from ggufy.service.service import Services
from ggufy.system import child_process
from ggufy.system.settings import Settings, prepare_process
from ggufy.system.signals import told_to_end
from ggufy.system.streams import guard

if TYPE_CHECKING:
    from ggufy.ui.server import PageServer

_END_S = 2.8  # a container is killed some seconds after it was asked to end
_REQUESTS_S = 0.5  # that requests have; a tab keeps one open as long as it is there


def main() -> None:
    """Serves until it is told to stop. Before the page is there, a signal ends the process at once."""
    try:
        prepare_process(settings := Settings.from_env())
        if settings.die_with_parent:
            child_process.die_with_parent()
        from ggufy.ui.build import serve  # after the settings: gradio, imported, stumbles over a wrong port

        page = serve(services := Services(settings))
    except GgufyError as error:
        sys.exit(f"ggufy: {error}")
    except KeyboardInterrupt:
        sys.exit(1)
    with told_to_end() as told:

        def leave_then() -> None:
            told.wait()
            leave(services, page)

        threading.Thread(target=leave_then, name="ggufy-leaving", daemon=True).start()  # whatever holds this one up
        services.start()
        threading.Event().wait()


def leave(services: Services, page: PageServer) -> None:
    """Ends in good order if that is quick, and at once if it is not: tools die with this process, and whatever is not
    finished goes on at the next start."""
    late = threading.Timer(_END_S, os._exit, args=[0])
    late.daemon = True
    late.start()
    # Requests that are still open then end with the process: cancelled, each would leave a traceback in the log.
    closing = threading.Thread(target=page.close, args=[2 * _END_S], name="ggufy-closing", daemon=True)
    closing.start()
    enough = time.monotonic() + _REQUESTS_S
    services.shutdown()
    closing.join(max(0.0, enough - time.monotonic()))
    logging.shutdown()
    os._exit(0)  # threads of libraries that still wait for something hold nothing that is needed


def program() -> None:
    """As `python app.py` and `ggufy page` run it: with a log, and streams that do not stop the work."""
    guard(results=False)
    logging.basicConfig(format="%(levelname)s %(message)s")
    logging.getLogger("ggufy").setLevel(logging.INFO)
    main()


if __name__ == "__main__":
    program()
