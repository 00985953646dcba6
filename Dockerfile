# The release binary on a slim Debian, as an ordinary user with a numeric id (Kubernetes' runAsNonRoot can see it).
#
#   docker build -t offshoot .
#   docker run --rm -v ./shop.yaml:/etc/offshoot/config.yaml:ro -e SHOP_URL offshoot
#
# The file system may be read-only, except /var/lib/offshoot (`data_dir`): spill files, which may be lost at any time.

ARG RUST=1.95
ARG DEBIAN=bookworm

FROM rust:${RUST}-slim-${DEBIAN} AS build
# librdkafka is compiled from its source: C, C++ and make; TLS is the system's OpenSSL.
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ make pkg-config libssl-dev zlib1g-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
# The manifest names the benchmark, which must be there although it is not built.
COPY benches benches
COPY src src
# The caches are not part of a layer, so the binary is copied out of them in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin offshoot \
 && strip --strip-debug -o /offshoot target/release/offshoot

FROM debian:${DEBIAN}-slim
# Root certificates for `sslmode=verify-full` and SASL_SSL with public authorities.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libssl3 zlib1g ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o 65532 -g 65532 -m 0750 /var/lib/offshoot
COPY --from=build /offshoot /usr/local/bin/offshoot
USER 65532:65532
# Probes and metrics, when the config says `admin: { listen: 0.0.0.0:8642, token: file:... }`: off loopback it wants a
# token or TLS. Probes need neither header nor token.
EXPOSE 8642
# Number 1 in the container: it handles SIGTERM itself, drains and ends with 0.
ENTRYPOINT ["/usr/local/bin/offshoot"]
CMD ["run", "--config", "/etc/offshoot/config.yaml"]
