"""The page: settings → services → serve → resume. SIGTERM and Ctrl-C end it; what runs goes on at the next start."""

from __future__ import annotations

import logging
import signal
import sys
import threading

from ggufy.errors import GgufyError
from ggufy.llama import child
from ggufy.service import Services
from ggufy.settings import Settings
from ggufy.ui.build import serve

if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(message)s")
    logging.getLogger("ggufy").setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        services = Services(Settings.from_env())
        if services.settings.die_with_parent:
            child.die_with_parent()
        page = serve(services)
    except GgufyError as error:
        sys.exit(f"ggufy: {error}")
    services.start()
    logging.getLogger("ggufy").info("the page is at %s", page.local_url)
    stop.wait()
    services.shutdown()
    page.close(verbose=False)
