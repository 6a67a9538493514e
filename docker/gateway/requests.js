// What nginx's own variables cannot say of requests: whether the JSON before images can be read, and how long all that
// were answered took.

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
        return Array.isArray(JSON.parse(text).inputs) && !hasLoneSurrogate(text);
    } catch (error) {
        return false;
    }
}

// Whether an escape stands for half a character, which JSON.parse takes and Triton does not.
function hasLoneSurrogate(text) {
    const pairs = /\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}/g;
    return /\\u[dD][89a-fA-F]/.test(text.replace(pairs, ""));
}

// ---- counts of every worker together, in the zone `counts`, where GATEWAY_METRICS asks for them

const BOUNDS_S = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10];
const SECONDS = "alexnet_gateway_seconds";

// Counts an inference that is being logged; "1", so that all are. Its seconds are those at Tritons, second tries included:
// how slowly a caller sends is not counted.
function observe(r) {
    const grpc = r.uri.endsWith("/ModelInfer");
    if (grpc || r.uri.endsWith("/infer")) {
        const of = grpc ? "grpc" : "http";
        const trailer = r.variables.sent_trailer_grpc_status || r.variables.sent_http_grpc_status;
        const status = grpc && trailer ? trailer : r.variables.status;
        count(`alexnet_gateway_answers_total{protocol="${of}",status="${status}"}`, 1);
        if (status === (grpc ? "0" : "200")) {
            const tries = (r.variables.upstream_response_time || "").split(/[,:]/);
            const seconds = tries.reduce((sum, each) => sum + (Number(each) || 0), 0);
            const bound = BOUNDS_S.find((each) => seconds <= each) || "+Inf";
            count(`${SECONDS} ${of} ${bound}`, 1);
            count(`${SECONDS}_sum{protocol="${of}"}`, seconds);
        }
    }
    return "1";
}

function count(key, more) {
    ngx.shared.counts.incr(key, more, 0);
}

// Prometheus' text format. A bucket has all that took its bound or less.
function metrics(r) {
    const counts = ngx.shared.counts;
    const answers = counts.keys().filter((key) => key.startsWith("alexnet_gateway_answers")).sort();
    const lines = answers.map((key) => `${key} ${counts.get(key)}`);
    lines.unshift("# TYPE alexnet_gateway_answers_total counter");
    lines.push(`# TYPE ${SECONDS} histogram`);
    ["grpc", "http"].forEach((of) => {
        let all = 0;
        BOUNDS_S.concat("+Inf").forEach((bound) => {
            all += counts.get(`${SECONDS} ${of} ${bound}`) || 0;
            lines.push(`${SECONDS}_bucket{protocol="${of}",le="${bound}"} ${all}`);
        });
        lines.push(`${SECONDS}_sum{protocol="${of}"} ${counts.get(`${SECONDS}_sum{protocol="${of}"}`) || 0}`);
        lines.push(`${SECONDS}_count{protocol="${of}"} ${all}`);
    });
    r.headersOut["Content-Type"] = "text/plain; version=0.0.4";
    r.return(200, `${lines.join("\n")}\n`);
}

export default { json, metrics, observe };
