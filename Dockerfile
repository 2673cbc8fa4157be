# mpn-runtime on NVIDIA's TensorRT image. UNTESTED: nothing here has built or run it.
#
#   docker build -t mpn-runtime .
#   docker run --rm --gpus all -v "$PWD:/data" mpn-runtime \
#       run /data/clip.mp4 --mask /data/first.png --engine-dir /data/engines --backend tensorrt -o /data/out
#
# The image brings TensorRT's libraries and its Python package; the driver comes from the host.
# Plans are built on the first run and kept in the engine directory: mount it writable.
ARG TENSORRT_IMAGE=nvcr.io/nvidia/tensorrt:25.10-py3
FROM ${TENSORRT_IMAGE}

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /opt/mpn-runtime
COPY pyproject.toml README.md LICENSE ./
COPY src ./src

# TensorRT is there already, so not the extra [tensorrt], which would fetch another one.
RUN python3 -m pip install '.[gpu]' \
    && python3 -c "import tensorrt, mpn; print('tensorrt', tensorrt.__version__)"

RUN useradd --create-home mpn
USER mpn
WORKDIR /data
ENTRYPOINT ["mpn"]
CMD ["--help"]
