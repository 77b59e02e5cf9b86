# docker build -t spatialflow .                                          PyTorch for the CPU
# docker build -t spatialflow --build-arg INDEX=https://pypi.org/simple .   with CUDA
# docker run --rm -v "$PWD:/data" spatialflow demo --input /data/street.jpg --output /data/drawn
# With CUDA: docker run --gpus all ...
FROM python:3.13-slim

# PyTorch's own index has builds for the CPU alone, a tenth of the size of those on PyPI.
ARG INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_EXTRA_INDEX_URL=$INDEX PIP_NO_CACHE_DIR=1 VENV=/opt/spatialflow

WORKDIR /opt/source
COPY . .
RUN sh docker/install.sh

ENV PATH=/opt/spatialflow/bin:$PATH DETECTRON2_DATASETS=/data
WORKDIR /data
ENTRYPOINT ["spatialflow"]
CMD ["--help"]
