# A Hugging Face Space (Docker SDK), or any machine: docker build -t ggufy . && docker run -p 7860:7860 ggufy
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user
USER user
WORKDIR /home/user/app

# SYSTEM=spaces makes gradio use the Space's own login; without it every visitor would be taken for the owner.
ENV SYSTEM=spaces \
    PATH=/home/user/.local/bin:$PATH \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HUB_DISABLE_PROGRESS_BARS=1 \
    HF_XET_TELEMETRY_ENABLED=0 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1

COPY --chown=user requirements.txt .
# PIP_ARGS can name an index with CPU-only builds of torch; the plain one brings GPU libraries that nothing here uses.
ARG PIP_ARGS=""
RUN pip install --no-cache-dir --user $PIP_ARGS -r requirements.txt
COPY --chown=user . .

# llama.cpp is compiled for the CPU it runs on, at the first start, while the page says how far it is.
EXPOSE 7860
ENTRYPOINT ["tini", "--"]
CMD ["python", "app.py"]
