# One image for api, scheduler, worker and MLflow; the command says which.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# What to install, taken out of pyproject.toml, so that its other lines can change without a new download.
FROM ${PYTHON_IMAGE} AS requirements
WORKDIR /requirements
COPY pyproject.toml docker/requirements.py ./
RUN python3 requirements.py pyproject.toml service > requirements.txt

FROM ${PYTHON_IMAGE} AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python3 -m venv /opt/normcore
ENV PATH=/opt/normcore/bin:$PATH
COPY constraints.txt ./
# cpu, or cu126 and the like: a folder of PyTorch's own index. cuda: the build of the package index, several GB.
ARG TORCH=cpu
# From that index alone, so that one that is out of reach is an error and not the other build; and nothing else from it.
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ "$TORCH" = cuda ]; then set -- ; else set -- --index-url "https://download.pytorch.org/whl/$TORCH"; fi \
    && pip install --no-deps --constraint constraints.txt "$@" torch
COPY --from=requirements /requirements/requirements.txt ./
# What packages ship for their own tests and for compilers is a good sixth of the image, and nothing here runs it.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt --requirement requirements.txt \
    && find /opt/normcore/lib \( -type d -name tests -o -path '*/torch/include' -o -path '*/torch/test' \
        -o -path '*/torch/bin/*[Tt]est*' -o -path '*/torch/bin/protoc*' -o -path '*/pyarrow/include' \) \
        -prune -exec rm -rf {} +

FROM dependencies AS code
COPY pyproject.toml README.md LICENSE ./
COPY normcore normcore
COPY worker worker
COPY api api
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --prefix /code .

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 normcore \
    && useradd --uid 10001 --gid normcore --home-dir /var/lib/normcore --no-create-home normcore \
    && install -d -o normcore -g normcore /var/lib/normcore /var/lib/normcore/state /var/lib/normcore/data
# Two layers: a change of the code leaves the large one as it was.
COPY --from=dependencies /opt/normcore /opt/normcore
COPY --from=code /code /opt/normcore
# What libraries write beside the state goes where a read-only root file system lets them.
ENV PATH=/opt/normcore/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    HF_HOME=/var/lib/normcore/state/cache/huggingface \
    NORMCORE_STATE_DIR=/var/lib/normcore/state \
    NORMCORE_DATA_DIR=/var/lib/normcore/data
USER 10001:10001
WORKDIR /var/lib/normcore
EXPOSE 8000
# No HEALTHCHECK, since each service has its own in docker-compose.yml; one of NONE fails `docker compose up --wait`.
# Last, since the commit changes with every build.
ARG REVISION=
LABEL org.opencontainers.image.title="Normcore" \
      org.opencontainers.image.description="A laboratory for normalization in deep networks" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0"
CMD ["python", "-m", "uvicorn", "--factory", "api.app:create_app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "2"]
