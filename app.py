"""The page: settings → services → serve → resume. SIGTERM and Ctrl-C end it; what runs goes on at the next start."""

import logging
import signal
import sys
import threading

from ggufy.errors import GgufyError
from ggufy.llama import child
from ggufy.service import Services
from ggufy.settings import Settings, prepare_process
from ggufy.streams import guard

if __name__ == "__main__":
    guard(results=False)
    logging.basicConfig(format="%(levelname)s %(message)s")
    logging.getLogger("ggufy").setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        prepare_process(settings := Settings.from_env())
        if settings.die_with_parent:
            child.die_with_parent()
        from ggufy.ui.build import serve  # after the settings: gradio, imported, stumbles over a wrong port

        page = serve(services := Services(settings))
    except GgufyError as error:
        sys.exit(f"ggufy: {error}")
    services.start()
    stop.wait()
    services.shutdown()
    page.close()
