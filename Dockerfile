# The command line in a container, for a CPU:
#   docker build -t frugalign .
#   docker run --rm -v "$PWD:/work" frugalign demo --output_dir runs/demo
# For a GPU: docker build --build-arg TORCH=cuda -t frugalign:cuda . && docker run --gpus all …
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS build
ARG TORCH=cpu
ARG EXTRAS=study
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt constraints-cpu.txt ./
COPY src ./src
RUN case "$TORCH" in \
      cpu) constraints=constraints-cpu.txt ;; \
      cuda) constraints=constraints.txt ;; \
      *) echo "TORCH must be cpu or cuda, not $TORCH" >&2; exit 2 ;; \
    esac \
    && python -m venv /opt/frugalign \
    && /opt/frugalign/bin/pip install --no-cache-dir -c "$constraints" ".[$EXTRAS]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/frugalign /opt/frugalign
# Any user may run it, such as yours (--user "$(id -u):$(id -g)"), so that files in /work belong to you.
RUN useradd --create-home --uid 1000 frugalign \
    && mkdir -p /work /cache \
    && chmod 1777 /work /cache
ENV PATH=/opt/frugalign/bin:$PATH HOME=/cache HF_HOME=/cache/huggingface
USER frugalign
WORKDIR /work
ENTRYPOINT ["frugalign"]
CMD ["--help"]
