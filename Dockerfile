# One image for every role: `jobq scheduler`, `jobq worker -Q …`, `jobq db upgrade`. Nothing is fetched that the two
# lock files do not name, and what was needed to build stays behind.
ARG BASE=python:3.12-slim

FROM ${BASE} AS wheel
WORKDIR /src
COPY requirements-dev.lock ./
RUN python3 -m venv /tools && /tools/bin/pip install --no-cache-dir --require-hashes -r requirements-dev.lock
COPY pyproject.toml README.md LICENSE ./
COPY jobq ./jobq
COPY workers ./workers
COPY scheduler ./scheduler
RUN /tools/bin/hatchling build -t wheel

FROM ${BASE} AS venv
COPY requirements.lock ./
RUN python3 -m venv /opt/jobq && /opt/jobq/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY --from=wheel /src/dist/*.whl /tmp/
RUN /opt/jobq/bin/pip install --no-cache-dir --no-deps /tmp/*.whl

FROM ${BASE}
LABEL org.opencontainers.image.title="jobq" org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/jobq/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
COPY --from=venv /opt/jobq /opt/jobq
# By number: Kubernetes' runAsNonRoot cannot judge a name.
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["jobq"]
CMD ["--help"]
