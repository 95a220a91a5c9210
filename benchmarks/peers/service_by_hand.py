"""The few-shot service that one writes by hand in an afternoon: FastAPI, a conv4, class means, one request at a time.

It holds the same network as the run it stands beside, keeps tasks in memory alone, checks nothing, and answers what
`benchmarks.service` asks: ``python -m benchmarks.peers.service_by_hand PORT``.
"""

import base64
import io
import sys
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from torch import nn

app, tasks = FastAPI(), dict[str, Any]()
torch.set_num_threads(1)


def block(inputs: int) -> nn.Sequential:
    """Return a quarter of the conv4 of the literature."""
    return nn.Sequential(nn.Conv2d(inputs, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2))


network = nn.Sequential(block(1), block(64), block(64), block(64), nn.Flatten()).eval()


def features(images: list[str]) -> torch.Tensor:
    """Return what the network sees in images."""
    read = (Image.open(io.BytesIO(base64.b64decode(image))).convert("L").resize((28, 28)) for image in images)
    x = torch.from_numpy(np.stack([np.asarray(one) for one in read])).float().unsqueeze(1) / 255
    with torch.no_grad():
        return network(x)


@app.post("/v1/tasks", status_code=201)
def create(body: dict[str, Any]) -> dict[str, Any]:
    """Learn the means of classes."""
    labels = sorted({example["label"] for example in body["examples"]})
    means = [features([one["image"] for one in body["examples"] if one["label"] == label]).mean(0) for label in labels]
    tasks[str(len(tasks))] = labels, torch.stack(means)
    return {"id": str(len(tasks) - 1)}


@app.post("/v1/tasks/{task}/predict")
def predict(task: str, body: dict[str, Any]) -> dict[str, Any]:
    """Tell which mean is the nearest."""
    labels, means = tasks[task]
    found = (-torch.cdist(features([one["image"] for one in body["inputs"]]), means).square()).softmax(-1)
    rows = [dict(zip(labels, row)) for row in found.tolist()]
    return {"predictions": [{"prediction": max(row, key=row.__getitem__), "probabilities": row} for row in rows]}


@app.get("/readyz")
def ready() -> dict[str, bool]:
    """Say that it answers."""
    return {"ready": True}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
