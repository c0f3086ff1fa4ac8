# One image for CPUs and NVIDIA GPUs: the torch of requirements.lock carries CUDA on Linux x86-64 and runs without it.
#
#   docker build -t selfsup .
#   docker run --rm -v "$PWD/out:/out" selfsup sh -c "make reproduce && cp -r report metrics /out"
#   docker run --rm --gpus all --ipc host -e NPROC=2 selfsup

FROM python:3.12-slim

# git: DVC and the commit that a run is tagged with; g++: torch.compile. The image's release sets their versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv==0.13.8 \
    && useradd --create-home --uid 1000 selfsup \
    && install --directory --owner 1000 /project

USER 1000
WORKDIR /project
ENV UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1

# The environment changes less often than the code: it is a layer of its own. Every package is checked by its hash.
COPY --chown=1000 requirements.lock ./
RUN uv venv .venv && uv pip install --require-hashes -r requirements.lock

COPY --chown=1000 . .
# The image holds no repository, and DVC must not look for one.
RUN make env && .venv/bin/dvc config --local core.no_scm true

CMD ["make", "reproduce"]
