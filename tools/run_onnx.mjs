// Run an ONNX file in Node, and print its outputs as JSON: what a language without Python makes of an exported model.
//
//   npm install onnxruntime-node
//   node tools/run_onnx.mjs model.onnx images:uint8:9,1,28,28:images.bin [NAME:TYPE:SHAPE:FILE …]
//
// A file holds an input's numbers as they lie in memory. The exit code is 3 where there is no onnxruntime-node.
// It is looked for from the folder that this is called in, and in $ONNXRUNTIME_NODE, a folder with node_modules.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

let runtime;
for (const folder of [process.env.ONNXRUNTIME_NODE, process.cwd()].filter(Boolean)) {
  try {
    runtime = createRequire(path.join(path.resolve(folder), "here.js"))("onnxruntime-node");
    break;
  } catch (error) {
    if (error.code !== "MODULE_NOT_FOUND") throw error;
  }
}
if (runtime === undefined) {
  console.error("onnxruntime-node is not installed; `npm install onnxruntime-node`, or say where in $ONNXRUNTIME_NODE");
  process.exit(3);
}
const ARRAYS = { uint8: Uint8Array, float32: Float32Array, float64: Float64Array, int64: BigInt64Array };
const [model, ...inputs] = process.argv.slice(2);
const session = await runtime.InferenceSession.create(model);
const given = {};
for (const text of inputs) {
  const [name, type, shape, file] = text.split(":");
  const bytes = readFileSync(file);
  const numbers = new ARRAYS[type](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  given[name] = new runtime.Tensor(type, numbers, shape.split(",").map(Number));
}
const found = await session.run(given);
const told = Object.entries(found).map(([name, { dims, data }]) => [name, { dims, data: Array.from(data, Number) }]);
console.log(JSON.stringify(Object.fromEntries(told)));
