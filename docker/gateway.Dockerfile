# The gateway: no torch, no media library, no root.
FROM python:3.12.13-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN python -m venv /opt/reelsmith \
 && /opt/reelsmith/bin/pip install --no-cache-dir -c constraints.txt .

FROM python:3.12.13-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data reelsmith \
 && install -d -o reelsmith -g reelsmith /data
COPY --from=build /opt/reelsmith /opt/reelsmith
ENV PATH=/opt/reelsmith/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    REELSMITH_DATA_DIR=/data \
    REELSMITH_HOST=0.0.0.0 \
    REELSMITH_PORT=8000
WORKDIR /data
VOLUME /data
USER reelsmith
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["reelsmith", "serve"]
