// Triton's HTTP protocol with binary data, and its classification extension:
// https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
// https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md

const LENGTH = "Inference-Header-Content-Length";

/** A refusal. `status` is HTTP's, 0 without an answer; `retryAfterS` is in seconds, null when the server names none. */
export class Refusal extends Error {
  constructor(message, status = 0, retryAfterS = null) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

/**
 * The most probable classes of an image file.
 * @param {Blob} image an encoded file
 * @param {string} key of the gateway
 * @returns {Promise<{version: string, top: {label: string, probability: number}[]}>}
 * @throws {Refusal}
 */
export async function classify(image, key, { model = "classify", top = 5, signal } = {}) {
  const response = await send(`/v2/models/${model}/infer`, packRequest(image, top), key, signal);
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (!response.ok) {
    throw new Refusal(reason(bytes), response.status, Number(response.headers.get("Retry-After")) || null);
  }
  return unpackAnswer(bytes, Number(response.headers.get(LENGTH)));
}

async function send(path, { body, headerLength }, key, signal) {
  const headers = {
    "Authorization": `Bearer ${key}`,
    "Content-Type": "application/octet-stream",
    [LENGTH]: String(headerLength),
  };
  try {
    return await fetch(path, { method: "POST", headers, body, signal, credentials: "omit", redirect: "error" });
  } catch (error) {
    throw new Refusal(error.name === "TimeoutError" ? "no answer in time" : "no connection to the server");
  }
}

// A JSON header, then the tensor: one string behind its length, four bytes little-endian.
function packRequest(image, top) {
  const header = new TextEncoder().encode(JSON.stringify({
    inputs: [{ name: "encoded", datatype: "BYTES", shape: [1, 1], parameters: { binary_data_size: image.size + 4 } }],
    outputs: [{ name: "probabilities", parameters: { classification: top, binary_data: true } }],
  }));
  const length = new DataView(new ArrayBuffer(4));
  length.setUint32(0, image.size, true);
  return { body: new Blob([header, length.buffer, image]), headerLength: header.length };
}

// A JSON header, then strings "probability:index:label", each behind its length.
function unpackAnswer(bytes, headerLength) {
  const decoder = new TextDecoder();
  const { model_version: version } = JSON.parse(decoder.decode(bytes.subarray(0, headerLength)));
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const top = [];
  for (let at = headerLength; at < bytes.length;) {
    const size = view.getUint32(at, true);
    const [probability, index, ...label] = decoder.decode(bytes.subarray(at + 4, at + 4 + size)).split(":");
    top.push({ label: label.join(":") || `class ${index}`, probability: Number(probability) });
    at += 4 + size;
  }
  return { version, top };
}

function reason(bytes) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes)).error.replace(/^in ensemble '[^']*', /, "");
  } catch {
    return "";
  }
}
