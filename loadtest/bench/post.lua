-- wrk: POST raw JPEG bodies, a hundred different ones in turn. Arguments: folder, then a header's name and value, ...
local requests, sent = {}, 0

function init(args)
  local headers = {["Content-Type"] = "application/octet-stream"}
  for i = 2, #args, 2 do headers[args[i]] = args[i + 1] end
  for i = 0, 99 do
    local file = assert(io.open(string.format("%s/%03d.jpg", args[1], i), "rb"))
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
    file:close()
  end
end

function request()
  sent = sent % #requests + 1
  return requests[sent]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"seconds": %f, "answers": %d, "p50_ms": %f, "p99_ms": %f, "max_ms": %f, "refused": %d, "failed": %d}\n',
    summary.duration / 1e6, summary.requests, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
