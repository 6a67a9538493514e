// What nginx's own variables cannot say of a request: whether the JSON before its images can be read.

// "broken" where the body does not begin with a JSON object with `inputs` that is as long as its header says; else
// nothing. Without a length the whole body is JSON; with 0 it is one image. The body has been read, in one piece.
function json(r) {
    const length = r.headersIn["Inference-Header-Content-Length"];
    const body = r.rawVariables.request_body || Buffer.alloc(0);
    const size = length === undefined ? body.length : Number(length);
    if (r.method !== "POST" || size === 0 || r.variables.request_body_file) {
        return "";
    }
    return size <= body.length && hasInputs(body.subarray(0, size).toString()) ? "" : "broken";
}

function hasInputs(text) {
    try {
        return Array.isArray(JSON.parse(text).inputs);
    } catch (error) {
        return false;
    }
}

export default { json };
