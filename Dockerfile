# One image for every component: radmesh serve --target=NAME.
#
#   docker build -t radmesh:0.1.0 .
#   docker run -v radmesh:/var/lib/radmesh -p 11112:11112 -p 50051:50051 radmesh:0.1.0 up --bind 0.0.0.0
#
# BASE is any image with Python 3.11 or newer and apt-get; both stages stand on it, for the virtual environment made
# in the first is taken over as it is.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# Debian's own Python, unlike that of the default base, has headers and venv in packages of their own.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
      $(ls /usr/local/include/python3.*/Python.h >/dev/null 2>&1 || echo python3-dev python3-venv)
WORKDIR /src
RUN python3 -m venv /tools && python3 -m venv --without-pip /opt/radmesh
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/src/constraints.txt
# What is rarely changed first: a new version of radmesh does not fetch its dependencies again.
COPY constraints.txt pyproject.toml ./
RUN /tools/bin/pip install -q 'pip>=25.1' \
 && /tools/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
      print(*p['dependencies'], *p['optional-dependencies']['postgresql'], sep='\n')" > requirements.txt \
 && /tools/bin/pip --python /opt/radmesh/bin/python install -q -r requirements.txt
COPY setup.py README.md LICENSE ./
COPY protos protos
COPY components components
COPY native native
COPY gateway_proxy gateway_proxy
RUN /tools/bin/pip --python /opt/radmesh/bin/python install -q --no-deps . \
 && /opt/radmesh/bin/radmesh version

FROM ${BASE}
LABEL org.opencontainers.image.title="radmesh" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/radmesh /opt/radmesh
# For volumes that take the owner of what they cover; on Kubernetes fsGroup does it.
RUN install -d -o 10001 -g 10001 /var/lib/radmesh
# MALLOC_…: as `radmesh up` sets for its processes (radmesh.mesh.up.MALLOC).
ENV PATH=/opt/radmesh/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MALLOC_MMAP_THRESHOLD_=33554432 \
    MALLOC_TRIM_THRESHOLD_=536870912 \
    MALLOC_TOP_PAD_=16777216 \
    RADMESH_DATA=/var/lib/radmesh/data
USER 10001:10001
WORKDIR /
EXPOSE 2575 2762 8080 11112 50051
ENTRYPOINT ["radmesh"]
CMD ["--help"]
