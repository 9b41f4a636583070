# An image in which `yolods launch WORD ...` runs: docs/python.md says how to build and use it.
FROM python:3.11-slim-bookworm

# The build of torch: cpu, or one for CUDA from PyTorch's own index, such as cu126.
ARG TORCH=cu126

# DeepSpeed's launcher reaches other hosts by pdsh and ssh; its operators are compiled when used.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential openssh-client pdsh \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/yolods
COPY setup.py constraints.txt README.md LICENSE ./
COPY ds_configs ds_configs
COPY yolods yolods
RUN DS_BUILD_OPS=0 pip install --no-cache-dir -c constraints.txt \
    --extra-index-url "https://download.pytorch.org/whl/${TORCH}" \
    "torch==$(sed -n 's/^torch==//p' constraints.txt)+${TORCH}" \
    "torchvision==$(sed -n 's/^torchvision==//p' constraints.txt)+${TORCH}" .

WORKDIR /work
ENTRYPOINT ["yolods", "launch"]
CMD ["demo"]
