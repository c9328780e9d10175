# The images, one target each. They share the layers below them, so that building all costs little more than building one.
# No step depends on the architecture: docker-bake.hcl builds for amd64 and arm64. docs/docker.md describes the images.
#   docker build --tag tailrace .                  the command, both services and the default models (make image)
#   docker build --target inference_server .       the inference server with the default models: docker-compose.yml, Kubernetes
#   docker build --target http_bridge .            the bridge, without torch: docker-compose.yml, Kubernetes
FROM python:3.11-slim AS base

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1 PYTHONPATH=/app
# Downloads, and what the server prepares for them. The server writes nowhere else.
ENV HOME=/cache XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface TAILRACE_CACHE_DIR=/cache/tailrace TRITON_CACHE_DIR=/cache/triton

# The cache is writable for every user, because `--user` and OpenShift select the user. A volume mounted there starts with
# the same rights.
RUN useradd --system --uid 10001 --gid 0 --home-dir /cache --no-create-home tailrace \
    && install --directory --owner 10001 --group 0 --mode 1777 /cache
WORKDIR /app
COPY deploy/docker/install.sh deploy/docker/
RUN deploy/docker/install.sh bytecode


FROM base AS http_bridge

COPY requirements/bridge.txt requirements/
RUN deploy/docker/install.sh bridge && deploy/docker/install.sh finish
COPY pyproject.toml ./
COPY tailrace tailrace
COPY tailrace_shared tailrace_shared
COPY http_bridge http_bridge
RUN python -m compileall -q . && chmod -R a+rX .

# A number, so that Kubernetes can verify that it is not root.
USER 10001:0
# Inside a container, loopback is the container's own. The bridge starts on this address only with TAILRACE_API_TOKENS.
ENV TAILRACE_HTTP_ADDRESS=0.0.0.0:8787 TAILRACE_LOG_FORMAT=json
EXPOSE 8787
# http.client, unlike urllib, uses no proxy from the environment.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client; connection = http.client.HTTPConnection('127.0.0.1', 8787, timeout=4); \
connection.request('GET', '/healthz'); raise SystemExit(connection.getresponse().status != 200)"]
CMD ["python", "-m", "http_bridge"]


# The server's packages and the default models, in layers that do not change with the code.
FROM base AS packages

# The index that pip installs torch from. Here it is the one without CUDA. Empty: pip's own index settings. PyPI's torch for
# Linux also installs several gigabytes of CUDA libraries.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu

COPY requirements/torch.txt requirements/cuda.txt requirements/
RUN deploy/docker/install.sh torch
COPY requirements/models.txt requirements/
RUN deploy/docker/install.sh models
COPY requirements/server.txt requirements/
RUN deploy/docker/install.sh server


# The server's code, and everything that a first start would prepare.
FROM packages AS prepared

# The kernels for every instruction set of this architecture, in a layer that changes with their code alone.
COPY inference_server/__init__.py inference_server/
COPY inference_server/kernels inference_server/kernels
RUN python -m inference_server.kernels.jit.ahead_of_time
COPY pyproject.toml ./
COPY tailrace tailrace
COPY tailrace_shared tailrace_shared
COPY inference_server inference_server
# The descriptions of the default models, and Python's bytecode. The services' user may read what root wrote.
RUN OMP_NUM_THREADS=1 python -m inference_server.serving.ahead_of_time && python -m compileall -q . && chmod -R a+rX .


FROM packages AS inference_server

RUN deploy/docker/install.sh finish
COPY --from=prepared /app /app

USER 10001:0
# The second address is for the health check below, which has no certificates.
ENV TAILRACE_GRPC_ADDRESS=0.0.0.0:50051 TAILRACE_GRPC_HEALTH_ADDRESS=127.0.0.1:50052 TAILRACE_LOG_FORMAT=json
EXPOSE 50051
# Healthy once every model has generated something. The first start may download weights, for up to an hour.
HEALTHCHECK --interval=5s --timeout=5s --start-period=1h --retries=3 \
    CMD ["python", "-c", "import grpc; from grpc_health.v1 import health_pb2 as pb, health_pb2_grpc; \
channel = grpc.insecure_channel('127.0.0.1:50052', [('grpc.enable_http_proxy', 0)]); \
reply = health_pb2_grpc.HealthStub(channel).Check(pb.HealthCheckRequest(), timeout=4); \
raise SystemExit(reply.status != pb.HealthCheckResponse.SERVING)"]
CMD ["python", "-m", "inference_server"]


# The last target is the default.
FROM packages AS tailrace

COPY requirements/all.txt requirements/
RUN deploy/docker/install.sh all && deploy/docker/install.sh finish
COPY --from=prepared /app /app
COPY deploy/docker deploy/docker
COPY tailrace_cli tailrace_cli
COPY http_bridge http_bridge
RUN python -m compileall -q tailrace_cli http_bridge && chmod -R a+rX deploy tailrace_cli http_bridge \
    && ln -s /app/deploy/docker/tailrace.sh /usr/local/bin/tailrace

USER 10001:0
ENV TAILRACE_HTTP_ADDRESS=0.0.0.0:8787 TAILRACE_GRPC_ADDRESS=127.0.0.1:50051
EXPOSE 8787
HEALTHCHECK --interval=2s --timeout=5s --start-period=1h --retries=5 CMD ["/app/deploy/docker/healthcheck.sh"]
ENTRYPOINT ["tailrace"]
CMD ["serve"]

LABEL org.opencontainers.image.title="Tailrace" \
      org.opencontainers.image.description="Workers AI text generation on your own hardware, with a small default model" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.documentation="docs/docker.md"
