# For a CPU:    docker build -t unisegdiff .
# For a GPU:    docker build -t unisegdiff --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 \
#                   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
# For grand-challenge.org, with a model folder or archive in model/:
#               docker build -t algorithm --target grand-challenge .
ARG BASE=python:3.11-slim

FROM ${BASE} AS commands
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN command -v python3 > /dev/null || (apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/venv
COPY . /opt/source
RUN /opt/venv/bin/pip install --no-cache-dir -c /opt/source/constraints.txt torch --index-url ${TORCH_INDEX} \
        --extra-index-url https://pypi.org/simple \
 && /opt/venv/bin/pip install --no-cache-dir -c /opt/source/constraints.txt /opt/source \
 && mkdir -p /opt/app && cp /opt/source/documentation/examples/grand_challenge.py /opt/app \
 && rm -rf /opt/source
# Nothing below /opt is written at run time, nor anything but the mounted folders and /tmp: run with --read-only
# --tmpfs /tmp --network none. The user has no name and no home.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp/matplotlib \
    usd_raw=/data/raw usd_preprocessed=/data/preprocessed usd_results=/data/results
USER 10001:10001
WORKDIR /data
CMD ["usd_doctor"]

FROM commands AS grand-challenge
COPY model /opt/app/model
WORKDIR /tmp
ENTRYPOINT ["python", "/opt/app/grand_challenge.py"]

# The stage that is built by default.
FROM commands
