-- wrk: POST the hundred files of a folder, raw, in turn. Arguments: the folder, "obey" or "insist" after a refusal, then a
-- header's name and value, ...; the values of a name that comes several times take turns.
local requests, sent, refused, wait_ms = {}, 0, 0, 0

-- wrk does not say whose connection it asks about, so as many wait as were refused.
local function obey()
  function response(status, headers)
    if status == 429 or status == 503 then
      refused, wait_ms = refused + 1, 1000 * (tonumber(headers["Retry-After"]) or 1)
    end
  end
  function delay()
    if refused == 0 then return 0 end
    refused = refused - 1
    return wait_ms
  end
end

function init(args)
  local headers, values = {["Content-Type"] = "application/octet-stream"}, {}
  for i = 3, #args, 2 do
    values[args[i]] = values[args[i]] or {}
    table.insert(values[args[i]], args[i + 1])
  end
  for i = 0, 99 do
    for name, each in pairs(values) do headers[name] = each[i % #each + 1] end
    local file = assert(io.open(string.format("%s/%03d.jpg", args[1], i), "rb"))
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
    file:close()
  end
  if args[2] == "obey" then obey() end
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
