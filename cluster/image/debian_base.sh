#!/usr/bin/env bash
# Makes a stand-in for the base of the image, without CUDA, where no registry of images is reached:
#     bash cluster/image/debian_base.sh localhost/cprec-debian
# Like the published base it has a distribution's own Python and compiler, and torch in /usr/local.
# Needs root, buildah, debootstrap, and a pip. Which build of torch it gets is up to pip's settings.
set -euo pipefail
name=${1:?"no name for the image: bash cluster/image/debian_base.sh NAME"}
cd "$(dirname "$0")/../.."

wheels=$(mktemp -d)
container=$(buildah from scratch)
trap 'buildah rm "$container" >/dev/null; rm -rf "$wheels"' EXIT

debootstrap --variant=minbase \
  --include=build-essential,ca-certificates,python3-dev,python3-pip,python-is-python3 \
  bookworm "$(buildah mount "$container")" # Debian 12: Python 3.11
buildah umount "$container"

python3 -m pip download --dest "$wheels" --python-version 3.11 --only-binary :all: \
  --constraint requirements.lock torch pip
buildah run --volume "$wheels:/mnt:ro" "$container" -- sh -c \
  'python -m pip install --break-system-packages --no-cache-dir --ignore-installed --no-deps \
   /mnt/*'
buildah run "$container" -- rm -rf /var/cache/apt/archives /var/lib/apt/lists
buildah commit "$container" "$name"
