# Both workers: the cpu worker prepares datasets, the gpu worker trains. torch's wheels bring their
# own CUDA libraries; the base image tells the container runtime which driver they need.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# torch first and by itself, as in the Makefile: an exact version, the largest layer.
RUN python3 -m venv /opt/reelsmith \
 && /opt/reelsmith/bin/pip install --no-cache-dir -c constraints.txt torch==2.13.0 \
 && /opt/reelsmith/bin/pip install --no-cache-dir -c constraints.txt '.[worker]'

FROM nvidia/cuda:13.0.2-base-ubuntu24.04
# libgl1 and libglib2.0: OpenCV, which the scene detection loads.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 ca-certificates libgl1 libglib2.0-0t64 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /data reelsmith \
 && install -d -o reelsmith -g reelsmith /data
COPY --from=build /opt/reelsmith /opt/reelsmith
COPY docker/worker_health.py /opt/reelsmith/worker_health.py
ENV PATH=/opt/reelsmith/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data \
    HF_HOME=/data/huggingface \
    REELSMITH_DATA_DIR=/data
WORKDIR /data
VOLUME /data
USER reelsmith
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 \
  CMD ["python", "/opt/reelsmith/worker_health.py"]
# Which queue it works on is the caller's choice: see docker-compose.yml.
ENTRYPOINT ["celery", "-A", "workers.celery_app", "--quiet", "worker"]
CMD ["-Q", "cpu", "-n", "cpu@%h", "-c", "1", "--loglevel", "WARNING", "--without-gossip", "--without-mingle"]
