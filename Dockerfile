# The bus as an image: built from wheels with checked hashes, run by a user without rights, on a root file system that
# may be read-only. What lasts is in /data; /tmp has to be writable, and may be memory:
#
#   docker build -t multi-agent-bridge .
#   docker run --read-only --tmpfs /tmp -v bus-data:/data -p 5001:5001 multi-agent-bridge
#
# Auth is on: the first start prints the admin key, once, unless API_KEY gives one. With `--build-arg TRACING=yes` the
# image has what ENABLE_TRACING needs.

FROM python:3.11-slim AS requirements
ARG TRACING=""
COPY requirements.txt requirements-tracing.txt /build/
RUN python -m venv --without-pip /opt/bus \
    && python -m pip --disable-pip-version-check --python /opt/bus install --no-cache-dir \
        --require-hashes --only-binary :all: --requirement /build/requirements.txt \
        ${TRACING:+--requirement /build/requirements-tracing.txt}

FROM python:3.11-slim
RUN groupadd --system --gid 10001 bus \
    && useradd --system --uid 10001 --gid bus --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin bus \
    && install --directory --owner bus --group bus --mode 0700 /data
COPY --from=requirements /opt/bus /opt/bus
WORKDIR /app
COPY *.py llms.txt ./
COPY bus/ bus/
COPY extensions/ extensions/
COPY clients/javascript/ clients/javascript/
ENV PATH=/opt/bus/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MESSAGE_BUS_HOST=0.0.0.0 \
    DATA_DIR=/data \
    ENABLE_AUTH=true \
    ENVIRONMENT=production
RUN python -m compileall -q .
USER 10001:10001
VOLUME ["/data"]
EXPOSE 5001
HEALTHCHECK --interval=30s --timeout=3s --start-period=5s --retries=3 \
    CMD python -m bus health --live --url "http://127.0.0.1:${MESSAGE_BUS_PORT:-5001}"
CMD ["python", "server_ws.py"]
