#!/bin/sh
# `docker run IMAGE pretrain …` is a command of voxelwave; `docker run IMAGE python …` is what it says.
case "${1:-}" in
    python | python3 | sh | bash | voxelwave | foqus-train | /*) exec "$@" ;;
    *) exec voxelwave "$@" ;;
esac
