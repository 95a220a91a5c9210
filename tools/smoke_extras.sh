#!/bin/sh
# Install each extra in a fresh environment, and see that what it brings can be imported: `pip check` does not see a
# torchvision that does not match torch. tools/smoke_extras.sh [EXTRA…]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
for extra in "${@:-text}"; do
    place=$(mktemp -d)
    trap 'rm -rf "$place"' EXIT
    python3 -m venv "$place/env"
    "$place/env/bin/pip" install -q "$root[$extra]"
    case $extra in
        text) program='from transformers import AutoModel, PreTrainedModel; import tokenizers' ;;
        vision) program='import timm, torchvision; torchvision.ops.nms' ;;
        onnx) program='import onnxruntime' ;;
        tabular) program='import pyarrow' ;;
        sklearn) program='import sklearn' ;;
        *) echo "no smoke test for the extra $extra" && exit 2 ;;
    esac
    "$place/env/bin/python" -c "import headstart; $program; print('$extra: sound')"
    rm -rf "$place"
done
