#!/usr/bin/env bash
# Makes a folder in which qemu-aarch64 finds a 64-bit ARM Python with what a light installation of
# cdcca imports: Debian's interpreter, unpacked and not installed, and the wheels for that machine.
# For tests/downlink/test_aarch64.py and tests/test_light.py; needs Debian 12, root, and qemu-user.
#
#   bash tests/aarch64_root.sh FOLDER && CDCCA_AARCH64_ROOT=FOLDER pytest -n 0 tests/test_light.py
set -euo pipefail
folder=$(realpath -m "$1")

dpkg --add-architecture arm64
apt-get update -qq
mkdir -p "$folder/debs" "$folder/site"
(
  cd "$folder/debs"
  apt-get download -qq python3.11-minimal:arm64 libpython3.11-minimal:arm64 \
    libpython3.11-stdlib:arm64 libc6:arm64 libgcc-s1:arm64 libstdc++6:arm64 libexpat1:arm64 \
    zlib1g:arm64 libssl3:arm64 libffi8:arm64 libbz2-1.0:arm64 liblzma5:arm64 libuuid1:arm64
  for package in *.deb; do dpkg -x "$package" "$folder"; done
)
pip install --quiet --no-compile --target "$folder/site" --python-version 3.11 --only-binary=:all: \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 \
  --platform manylinux2014_aarch64 numpy zstandard cryptography typer \
  pillow httpx2 safetensors
