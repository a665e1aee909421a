# This project with all that it needs, for CPUs and NVIDIA GPUs: torch's packages bring CUDA's libraries along.
#
#   docker build -t detr .
#   docker run --rm -v "$PWD:/photos" detr demo.py --model detr_R_50 --input /photos/photo.jpg --output /photos/out
#
# Another base needs apt, and Python 3.10 to 3.13 in it or in its packages; see docs/docker.md.
ARG BASE=python:3.13-slim
FROM ${BASE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git make \
    && { command -v python3 || apt-get install -y --no-install-recommends python3 python3-venv; } \
    && rm -rf /var/lib/apt/lists/*

# Not root: what a container writes into a mounted folder belongs to a user.
RUN { id -u 1000 || useradd --create-home --uid 1000 detr; } \
    && mkdir /detr /data /output \
    && chown 1000:1000 /detr /data /output
USER 1000:1000
WORKDIR /detr

COPY --chown=1000:1000 . .
RUN PIP_NO_CACHE_DIR=1 make env

# Data sets, and downloaded weights beside them, outlive the container where /data is mounted.
ENV DETECTRON2_DATASETS=/data FVCORE_CACHE=/data/weights HF_HOME=/data/weights/timm MPLCONFIGDIR=/tmp/matplotlib
ENTRYPOINT ["/detr/.venv/bin/python"]
CMD ["demo.py", "--help"]
