# mpn-runtime on NVIDIA's TensorRT image. UNTESTED: this file has not been built or run.
#
#   docker build -t mpn-runtime .
#   docker run --rm --gpus all -v "$PWD:/data" mpn-runtime \
#       run /data/clip.mp4 --mask /data/first.png --engine-dir /data/engines --backend tensorrt -o /data/out
#
# The image contains TensorRT's libraries and Python package; the driver is the host's.
# The first run builds plans and writes them into the engine directory: mount it writable.
ARG TENSORRT_IMAGE=nvcr.io/nvidia/tensorrt:25.10-py3
FROM ${TENSORRT_IMAGE}

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /opt/mpn-runtime
COPY pyproject.toml MANIFEST.in README.md LICENSE ./
COPY src ./src
COPY weights/lite ./weights/lite

# Without the extra [tensorrt]: the image has TensorRT, and the extra would install a second one.
RUN python3 -m pip install '.[gpu]' ./weights/lite \
    && python3 -c "import tensorrt, mpn; print('tensorrt', tensorrt.__version__)"

RUN useradd --create-home mpn
USER mpn
WORKDIR /data
ENTRYPOINT ["mpn"]
CMD ["--help"]
