"""The same service by LitServe (pip install litserve): it gathers requests, which a loop answers.

What the network sees is computed of all requests that came together; what a task makes of that, one task after the
other. The network is that of the service by hand; here, too, nothing is checked, and tasks are in memory alone:
``python -m benchmarks.peers.service_by_litserve PORT``.
"""

import sys
from typing import Annotated, Any

import litserve
import torch
from fastapi import Depends, Request

from benchmarks.peers.service_by_hand import features


async def asked(request: Request) -> dict[str, Any]:
    """Return the body of a request, and which task it is of."""
    return {"path": request.path_params["path"], **await request.json()}


class FewShot(litserve.LitAPI):
    """Learns the means of classes, and tells which is the nearest."""

    def setup(self, device: str) -> None:
        """Begin without a task."""
        self._tasks = dict[str, Any]()

    def decode_request(self, request: Annotated[dict[str, Any], Depends(asked)]) -> dict[str, Any]:
        """Return a request as it is."""
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return requests that came together."""
        return inputs

    def predict(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer requests: what the network sees at once, the rest in a loop."""
        shown = [one.get("examples") or one["inputs"] for one in requests]
        x = features([part["image"] for own in shown for part in own]).split([len(own) for own in shown])
        return [self._answer(one, own) for one, own in zip(requests, x)]

    def _answer(self, request: dict[str, Any], x: torch.Tensor) -> dict[str, Any]:
        if "examples" in request:
            own = [example["label"] for example in request["examples"]]
            means = {label: x[[one == label for one in own]].mean(0) for label in sorted(set(own))}
            self._tasks[str(len(self._tasks))] = list(means), torch.stack(list(means.values()))
            return {"id": str(len(self._tasks) - 1)}
        labels, means = self._tasks[request["path"].split("/")[1]]
        rows = [dict(zip(labels, row)) for row in (-torch.cdist(x, means).square()).softmax(-1).tolist()]
        return {"predictions": [{"prediction": max(row, key=row.__getitem__), "probabilities": row} for row in rows]}

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the answers."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return an answer as it is."""
        return output


if __name__ == "__main__":
    # seconds for which it waits for more requests; with 0 it answered fewer a second
    api = FewShot(max_batch_size=64, batch_timeout=0.002, api_path="/v1/tasks{path:path}")
    server = litserve.LitServer(api, accelerator="cpu", healthcheck_path="/readyz", fast_queue=True)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", log_level="error", generate_client_file=False)
