# A Hugging Face Space (Docker SDK), or any machine, for itself:
# docker build -t ggufy . && docker run -p 127.0.0.1:7860:7860 -e GGUFY_TRUSTED_NETWORK=1 ggufy
# Inside a container the page listens on every address, so what reaches it is up to -p: for other machines too, leave
# 127.0.0.1 out and give GGUFY_PASSWORD instead. Without either, and off a Space, it does not start.
# `python -m tools.image` builds it with buildah, where there is no Docker, and tries what came out.
ARG BASE=python:3.12-slim

# Stage one compiles llama.cpp, once, for every generation of this kind of CPU: who builds is not where it will run.
FROM ${BASE} AS llama
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential cmake ninja-build \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Only what the build needs, so that this long step is kept when anything else changes.
COPY ggufy/__init__.py ggufy/
COPY ggufy/core/__init__.py ggufy/core/errors.py ggufy/core/hosts.py ggufy/core/messages.py \
     ggufy/core/scrub.py ggufy/core/words.py ggufy/core/
COPY ggufy/system/__init__.py ggufy/system/child_process.py ggufy/system/files.py ggufy/system/resources.py \
     ggufy/system/locks.py ggufy/system/settings.py ggufy/system/user_paths.py ggufy/system/
COPY ggufy/llama ggufy/llama
RUN python -m ggufy.llama.portable /opt/llama.cpp

FROM ${BASE}
# The font is for Chinese names in pictures.
RUN apt-get update \
    && apt-get install -y --no-install-recommends fonts-wqy-microhei libgomp1 tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user
WORKDIR /home/user/app
COPY requirements.txt requirements.lock ./
# PIP_ARGS can name an index with CPU-only builds of torch; the plain one brings 3 GB for GPUs that nothing here uses.
ARG PIP_ARGS=""
# All else is pinned by hash; torch by its version only, since it differs from index to index.
RUN pip install --no-cache-dir --root-user-action=ignore $PIP_ARGS "$(grep ^torch== requirements.txt)" \
    && pip install --no-cache-dir --root-user-action=ignore --require-hashes -r requirements.lock
COPY --from=llama /opt/llama.cpp /opt/llama.cpp
# The code belongs to root: what runs as `user` writes to its home folder only, and cannot change the program.
COPY app.py LICENSE ./
COPY ggufy ggufy
RUN python -m compileall -q app.py ggufy

USER user
# SYSTEM=spaces makes gradio use the Space's own login; without it every visitor would be taken for the owner.
ENV SYSTEM=spaces \
    HOME=/home/user \
    GGUFY_LLAMA_DIR=/opt/llama.cpp \
    GGUFY_CACHE=/home/user/.cache/ggufy \
    GGUFY_OUT=/home/user/ggufy-out \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HUB_DISABLE_PROGRESS_BARS=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HF_XET_TELEMETRY_ENABLED=0 \
    PYTHONUNBUFFERED=1
# Starts every tool once, so an image that lacks something is never made; then the texts, so a start needs no time.
RUN mkdir -p $GGUFY_OUT && python -m ggufy setup

EXPOSE 7860
# A Space does not look at this; Docker shows a page that stopped answering, or whose work did, as unhealthy.
HEALTHCHECK --interval=60s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['GRADIO_SERVER_PORT'] + '/health', timeout=5)"]
# tini is process 1: it hands SIGTERM to the page, which ends in good order, and clears away what its tools leave.
ENTRYPOINT ["tini", "--"]
CMD ["python", "app.py"]
