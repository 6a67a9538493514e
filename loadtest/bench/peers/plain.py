"""A server as one writes it in an afternoon: FastAPI, ONNX Runtime in FP32, Pillow, one image at a time."""

import io
import os

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image, ImageOps

from alexnet_triton.loadtest.bench.peers import Settings

app = FastAPI()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # there is one worker a core
session = onnxruntime.InferenceSession(
    f"{os.environ['BENCH_NETWORK']}/model.onnx", options, providers=["CPUExecutionProvider"]
)
size = session.get_inputs()[0].shape[1]


def classify_file(encoded: bytes) -> dict:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, upper = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image.crop((left, upper, left + size, upper + size)))
    probabilities = session.run(None, {"images": pixels[None]})[0][0]
    index = int(probabilities.argmax())
    return {"index": index, "probability": float(probabilities[index])}


@app.post("/classify")
async def classify(request: Request) -> dict:
    return await run_in_threadpool(classify_file, await request.body())


if __name__ == "__main__":
    program, port = "alexnet_triton.loadtest.bench.peers.plain:app", int(os.environ["PORT"])
    uvicorn.run(program, host="127.0.0.1", port=port, workers=Settings.given().workers, log_level="error")
