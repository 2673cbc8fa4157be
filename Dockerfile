# mpn-runtime on a CPU. `make image` builds it with docker, podman or buildah; docs/containers.md has
# the commands that run it, and what was run.
#
# Build arguments:
#   BASE_IMAGE  a Debian that has Python 3.11 or newer
#   EXTRAS      extras of mpn-runtime, separated by commas
#   WEIGHTS     folder in weights/ that is installed too; empty for an image without weights
# Secrets, both optional. No layer has their content:
#   pip         a pip.conf, for a package index of your own
#   ca          CA certificates with which pip checks its index
ARG BASE_IMAGE=docker.io/library/debian:trixie-20261005-slim@sha256:a29215f6a35e51e22adffa17f89e9d2ef06214e64a2bad10d765c46aea49f11f

FROM ${BASE_IMAGE} AS base
# tini is PID 1: the kernel drops signals to PID 1 until Python has its handlers.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/apt /var/log/dpkg.log \
    && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin mpn \
    && install -d -o mpn -g mpn /data \
    && install -d -m 1777 /cache

FROM base AS build
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3-venv
# pip stays in this stage: the environment of the image has none.
RUN python3 -m venv /pip && python3 -m venv --without-pip /opt/mpn
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# Dependencies first: a change of the code does not install them again. The test suites of NumPy and
# SciPy are 48 MB.
ARG EXTRAS=cpu,serve
COPY pyproject.toml ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -c "import sys, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [project['optional-dependencies'][name] for name in sys.argv[1].split(',')]; \
print(*project['dependencies'], *sum(extras, []), sep='\n')" "$EXTRAS" > /tmp/requirements.txt \
    && /pip/bin/pip --python /opt/mpn/bin/python install -r /tmp/requirements.txt \
    && find /opt/mpn -type d -name tests -prune -exec rm -rf {} +

# Code and weights are layers of their own.
COPY MANIFEST.in README.md LICENSE ./
COPY src ./src
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    /pip/bin/pip --python /opt/mpn/bin/python install --no-deps --prefix /code .
ARG WEIGHTS=lite
COPY weights ./weights
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    mkdir /engines && if [ -n "$WEIGHTS" ]; then \
        /pip/bin/pip --python /opt/mpn/bin/python install --no-deps --prefix /engines "./weights/$WEIGHTS"; \
    fi

FROM base
COPY --from=build /opt/mpn /opt/mpn
COPY --from=build /engines /opt/mpn
COPY --from=build /code /opt/mpn
ENV PATH=/opt/mpn/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 XDG_CACHE_HOME=/cache
ARG WEIGHTS=lite
ARG VERSION
LABEL org.opencontainers.image.title="mpn-runtime" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0${WEIGHTS:+ AND CC-BY-NC-4.0}"
# A number: Kubernetes compares it for runAsNonRoot. `--user` takes any other.
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["/usr/bin/tini", "--", "mpn"]
CMD ["--help"]
