# syntax=docker/dockerfile:1
# A server: docker build -t ccm . (docs/operate.md says how to run it)
FROM python:3.11-slim

# The folder of PyTorch's index: cpu, or that of a CUDA version, such as cu130.
ARG TORCH=cpu

RUN useradd --uid 1000 --create-home ccm && install --directory --owner=ccm --mode=700 /store /models

WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN --mount=type=cache,target=/var/cache/pip \
    pip install --cache-dir /var/cache/pip -c constraints.txt --extra-index-url "https://download.pytorch.org/whl/$TORCH" '.[serve]'

ENV CCM_CACHE=/models/ccm HF_HOME=/models/hub PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/ccm
VOLUME ["/store", "/models"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=6s --start-period=5m --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/ready', timeout=5)"]
# Options that follow the image's name are added, and win over these.
ENTRYPOINT ["ccm", "serve", "--host", "0.0.0.0", "--store", "/store", "--keys", "/run/secrets/keys", "--log", "json"]
