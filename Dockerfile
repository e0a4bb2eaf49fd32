# Images of `corral serve`:
#
#   docker build --target cpu  --tag corral:0.1.0-cpu .
#   docker build --target cuda --tag corral:0.1.0-cuda .
#
# docs/deploy.md tells what they weigh, and how the first one gets by without CUDA's libraries.

ARG PYTHON=3.11.14

# Corral itself, as it will lie over the packages. This image has a C++ compiler, for the native kernels.
FROM python:${PYTHON}-bookworm AS corral
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/corral
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY native native
COPY src src
# Without its native library the package would install all the same, and be slow.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/corral/bin/pip install --no-deps --no-compile --root /overlay . \
    && python -m compileall -q -s /overlay /overlay/opt/corral/lib \
    && test -n "$(find /overlay -name libcorral_native.so)"

# What it needs, in layers that only a change of pyproject.toml renews. Wheels alone: nothing that comes is run here.
FROM python:${PYTHON}-slim-bookworm AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ONLY_BINARY=:all:
RUN python -m venv /opt/corral
WORKDIR /packages
COPY deploy/dependencies.py pyproject.toml ./
ARG EXTRAS=ui,otel
RUN python dependencies.py pyproject.toml "${EXTRAS}" > requirements.txt

# TORCH is a requirement, and PIP_EXTRA_INDEX_URL an index that has it. pip's own default on x86-64 is a build with CUDA:
# it computes on a CPU as well, and weighs gigabytes more.
ARG TORCH=torch
ARG PIP_EXTRA_INDEX_URL=
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/corral/bin/pip install "${TORCH}" --requirement requirements.txt

# What both images are. Everything but /cache and /tmp may be read-only.
FROM python:${PYTHON}-slim-bookworm AS runtime
RUN groupadd --gid 10001 corral \
    && useradd --uid 10001 --gid corral --home-dir /cache --no-create-home --shell /usr/sbin/nologin corral \
    && install --directory --owner corral --group corral --mode 0770 /cache
# USER is for whom runs it under another uid, which has no name: PyTorch asks for one.
ENV PATH=/opt/corral/bin:${PATH} \
    HOME=/cache \
    USER=corral \
    CORRAL_CACHE=/cache/corral \
    HF_HOME=/cache/huggingface \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CORRAL_HEALTH_URL=http://127.0.0.1:8000/health
WORKDIR /cache
VOLUME ["/cache"]
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=4 \
    CMD ["python", "-IS", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(os.environ['CORRAL_HEALTH_URL'], timeout=4)"]
# What is given to `docker run` goes behind --host, which must be what it is for anyone outside to get in.
ENTRYPOINT ["corral", "serve", "--host", "0.0.0.0"]
CMD ["smollm2-135m-instruct"]
LABEL org.opencontainers.image.title="Corral" \
      org.opencontainers.image.description="A Llama 3 family model behind the interfaces of OpenAI, Anthropic and TGI" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# The driver comes from the host, through NVIDIA's container toolkit; all else of CUDA comes with torch.
FROM runtime AS cuda
USER 0:0
# Triton compiles a launcher for each of its kernels. Debian's compiler fits Debian's C library in any version.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRITON_CACHE_DIR=/cache/triton
COPY --from=packages /opt/corral /opt/corral
RUN ["python", "-c", "import torch; assert torch.version.cuda, f'torch {torch.__version__} has no CUDA: leave TORCH out'"]
COPY --from=corral /overlay/opt/corral /opt/corral

# The last one is what `docker build` without a target makes.
FROM runtime AS cpu
COPY --from=packages /opt/corral /opt/corral
COPY --from=corral /overlay/opt/corral /opt/corral
