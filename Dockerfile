# One image for api, scheduler, worker and MLflow; the command says which.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Set to PyTorch's CPU index for an image without CUDA; see the README.
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /build
RUN python3 -m venv /opt/normcore
ENV PATH=/opt/normcore/bin:$PATH
# Dependencies change seldom, so they have a layer of their own below the code.
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir -p normcore worker api && touch README.md LICENSE \
    && pip install --disable-pip-version-check --constraint constraints.txt '.[service]' \
    && pip uninstall --yes normcore
COPY README.md LICENSE ./
COPY normcore normcore
COPY worker worker
COPY api api
RUN pip install --disable-pip-version-check --no-deps . && rm -rf build

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Normcore" \
      org.opencontainers.image.description="A laboratory for normalization in deep networks" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 normcore \
    && useradd --uid 10001 --gid normcore --home-dir /var/lib/normcore --create-home normcore \
    && install -d -o normcore -g normcore /var/lib/normcore/state /var/lib/normcore/data
COPY --from=build /opt/normcore /opt/normcore
ENV PATH=/opt/normcore/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NORMCORE_STATE_DIR=/var/lib/normcore/state \
    NORMCORE_DATA_DIR=/var/lib/normcore/data
USER normcore
WORKDIR /var/lib/normcore
EXPOSE 8000
CMD ["python", "-m", "uvicorn", "--factory", "api.app:create_app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "2"]
