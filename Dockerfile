# docker build -t crystalvae .                      CPU build of torch; the tests: docker build --target test .
# docker run --rm -v "$PWD:/work" crystalvae sample num_samples=20 output_dir=crystals
FROM python:3.11-slim AS base
WORKDIR /opt/crystalvae
COPY constraints.txt ./
RUN pip install --no-cache-dir "$(grep '^torch==' constraints.txt)" --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY configs configs
COPY checkpoints checkpoints
RUN pip install --no-cache-dir -c constraints.txt ".[evaluation,stability]"

FROM base AS test
RUN apt-get update && apt-get install --yes --no-install-recommends chromium git make && rm -rf /var/lib/apt/lists/*
COPY . .
# The environment of the image instead of one that make would fill with the CUDA build of torch.
RUN pip install --no-cache-dir -c constraints.txt -e ".[dev]" && touch /usr/local/.installed /usr/local/.installed-dev \
    && make test VENV=/usr/local

FROM base
WORKDIR /work
ENTRYPOINT ["crystalvae"]
CMD ["--help"]
