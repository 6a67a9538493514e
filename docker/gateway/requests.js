// What nginx's own variables cannot say of requests: whether the JSON before images can be read, whether a key has its
// share of Triton already, and how long all that were answered took.

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

// ---- a key's share of Triton: as many inferences in flight as are answered in time, however fast Triton is and however
// many images they have. So nobody waits long behind the flood of another key. Shares are those of every worker together.

const LEAST_SHARE = 2;
const IN_TIME_S = 0.75; // at Triton

// "1" where the key has its share in flight; else the inference counts as in flight until it is logged.
function isOverShare(r) {
    const key = r.variables.caller;
    if (!protocol(r)) {
        return "";
    }
    if (ngx.shared.in_flight.incr(key, 1, 0) > share(r)) {
        ngx.shared.in_flight.incr(key, -1, 1);
        return "1";
    }
    r.variables.is_in_flight = "1";
    return "";
}

// An eighth of the largest, until answers say more: of 16 images each they keep others waiting for a second or two.
function share(r) {
    return ngx.shared.shares.get(r.variables.caller) || Math.max(LEAST_SHARE, r.variables.largest_share / 8);
}

// The share doubles while answers are in time, and halves while they are late: each of them changes it a little. An
// inference says nothing of it where no Triton answered, or where the caller left (499) before one did.
function land(r, seconds) {
    if (!r.variables.is_in_flight) {
        return;
    }
    ngx.shared.in_flight.incr(r.variables.caller, -1, 1);
    if (seconds && r.variables.status !== "499") {
        const next = share(r) + (seconds > IN_TIME_S ? -0.5 : 1);
        const largest = Math.max(LEAST_SHARE, r.variables.largest_share);
        ngx.shared.shares.set(r.variables.caller, Math.max(LEAST_SHARE, Math.min(next, largest)));
    }
}

// ---- counts of every worker together, in the zone `counts`, where GATEWAY_METRICS asks for them

const BOUNDS_S = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10];
const SECONDS = "alexnet_gateway_seconds";

// Of a request that is being logged; "1", so that all are.
function observe(r) {
    const of = protocol(r);
    if (of) {
        const seconds = secondsAtTriton(r);
        land(r, seconds);
        if (ngx.shared.counts) {
            countAnswer(r, of, seconds || 0);
        }
    }
    return "1";
}

// What an inference came over; nothing where the request is none.
function protocol(r) {
    return r.uri.endsWith("/ModelInfer") ? "grpc" : r.uri.endsWith("/infer") ? "http" : "";
}

// Second tries included: how slowly a caller sends is not counted. Nothing where no Triton was asked.
function secondsAtTriton(r) {
    const tries = r.variables.upstream_response_time;
    return tries && tries.split(/[,:]/).reduce((sum, each) => sum + (Number(each) || 0), 0);
}

function countAnswer(r, of, seconds) {
    const trailer = r.variables.sent_trailer_grpc_status || r.variables.sent_http_grpc_status;
    const status = of === "grpc" && trailer ? trailer : r.variables.status;
    count(`alexnet_gateway_answers_total{protocol="${of}",status="${status}"}`, 1);
    if (status === (of === "grpc" ? "0" : "200")) {
        const bound = BOUNDS_S.find((each) => seconds <= each) || "+Inf";
        count(`${SECONDS} ${of} ${bound}`, 1);
        count(`${SECONDS}_sum{protocol="${of}"}`, seconds);
    }
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

export default { isOverShare, json, metrics, observe };
