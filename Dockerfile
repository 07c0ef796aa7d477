# `groupmix-sam serve` on a CPU, in OpenVINO, with the weights inside, as a user without rights; docs/serve.md explains it.
#
#     docker build -t groupmix-sam .
#     docker run --rm -p 127.0.0.1:8000:8000 -e GROUPMIX_SAM_TOKEN groupmix-sam
#
# It was never built or run: tests/serve checks its commands alone.

FROM python:3.12-slim AS build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# On x86-64 Linux, PyPI's torch brings gigabytes of CUDA. Give PyTorch's own index of CPU wheels to leave them out.
ARG TORCH_INDEX=
RUN pip install --no-cache-dir torch torchvision ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir '.[serve,openvino]'
ARG CHECKPOINT=default
RUN groupmix-sam export openvino /opt/model --images examples --checkpoint "$CHECKPOINT"

FROM python:3.12-slim
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/model /opt/model
ENV PATH=/opt/venv/bin:$PATH
RUN useradd --no-create-home --uid 10001 groupmix-sam
USER 10001
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["groupmix-sam", "serve", "--checkpoint", "/opt/model", "--host", "0.0.0.0"]
