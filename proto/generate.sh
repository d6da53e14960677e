#!/usr/bin/env bash
# Regenerates proto/gen from proto/hyperflexis. Runs in a virtual environment of its own: the oldest
# generator whose stubs every supported runtime accepts (grpcio >= 1.75.1, protobuf >= 6.31.1, < 8).
set -euo pipefail
cd "$(dirname "$0")"
venv=${PROTO_VENV:-../build/venv-proto}
mkdir -p "$venv" && venv=$(realpath "$venv")
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check 'grpcio-tools==1.75.1' 'mypy-protobuf>=5.1,<6'
fi
rm -rf gen && mkdir -p gen
PATH="$venv/bin:$PATH" "$venv/bin/python" -m grpc_tools.protoc -I. \
  --python_out=gen --grpc_python_out=gen --mypy_out=quiet:gen --mypy_grpc_out=quiet:gen \
  $(find hyperflexis -name '*.proto' | sort)
find gen -name '*_pb2_grpc.py' | while read -r f; do grep -q 'class .*Servicer' "$f" || rm -f "$f" "${f%.py}.pyi"; done
find gen/hyperflexis -type d | while read -r d; do touch "$d/__init__.py"; done
touch gen/hyperflexis/py.typed
